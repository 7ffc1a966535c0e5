"""Load on a running endpoint: how much it answers, and how long clients wait, with a policy and without, in one run.

A number of clients ask one completion after the other, streamed, in blocks that belong to one arm. The arms take turns
in an order drawn anew for each round (see ``scope_runtime.bench``), so that what slows the machine slows them alike.
Every prompt is of words drawn at random, so that no cache helps. Answers differ in length, alike for the arms of a
round: clients that all begin and end in one step meet in one batch or in two by chance, and the longest gaps between
tokens would tell of that and of nothing else.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import numpy as np

from scope_runtime.bench import OFF, ON
from scope_runtime.errors import UsageError
from scope_runtime.paired import Ratio, paired_ratio, pooled_ratio

WORDS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night"
).split()
"""Of about one token each in most vocabularies."""

TIMEOUT_S = 600.0
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked.

    Attributes:
        n_clients: that ask at once.
        n_requests: of each arm, in all rounds together.
        n_prompt: words of a prompt.
        n_answer: most tokens of an answer; each has its own limit, from half of that on.
    """

    n_clients: int = 8
    n_requests: int = 160
    n_prompt: int = 32
    n_answer: int = 64
    n_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"n_clients": 1, "n_prompt": 1, "n_answer": 2, "n_rounds": 2}
        least["n_requests"] = self.n_clients * self.n_rounds
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(
                    f"{name} is too small",
                    found=str(getattr(self, name)),
                    expected=str(low),
                    hint="Every client asks at least once in every round"
                    if name == "n_requests"
                    else None,
                )

    def limits(self, chance: random.Random) -> list[int]:
        """Most tokens of each answer of a round."""
        least = max(2, self.n_answer // 2)
        n = self.n_requests // self.n_rounds
        return [chance.randint(least, self.n_answer) for _ in range(n)]


@dataclass(frozen=True, slots=True)
class Way:
    """One arm: where its requests go, and as whom.

    Attributes:
        url: up to ``/v1``.
        headers: of the first client, the second, …; in turn where there are more clients.
    """

    name: str
    url: str
    headers: tuple[Mapping[str, str], ...] = ({},)


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class ServedArm:
    """One arm's figures; ratios are to the arm ``off``, None for itself and where there is none.

    A client that is not answered asks nothing more in that round.

    Attributes:
        n_failed: requests that were not answered in full; ``failure`` says what the first of them was told.
        interventions: what the responses said of how many rules may change the answer; empty: nothing.
        tokens_per_s: of all clients together, median over rounds.
        first_token_ms: from the request to the first piece of text; ``between_ms``: from one piece to the next.
    """

    name: str
    n_requests: int
    n_failed: int
    failure: str | None
    n_tokens: int
    interventions: tuple[int, ...]
    tokens_per_s: float
    first_token_ms: Spread
    between_ms: Spread
    throughput_ratio: Ratio | None
    first_token_p50_ratio: Ratio | None
    between_p99_ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class _Answer:
    first_s: float
    gaps_s: tuple[float, ...]
    n_tokens: int
    interventions: int | None


@dataclass(slots=True)
class _Block:
    """One arm in one round."""

    seconds: float = 0.0
    answers: list[_Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.n_tokens for answer in self.answers) / self.seconds

    @property
    def first_s(self) -> list[float]:
        return [answer.first_s for answer in self.answers]

    @property
    def gaps_s(self) -> list[float]:
        return [gap for answer in self.answers for gap in answer.gaps_s]


def load(
    ways: Sequence[Way], load: Load, *, progress: Callable[[float], None] = lambda share: None
) -> tuple[ServedArm, ...]:
    """Runs the rounds.

    Raises:
        UsageError: nobody answers there, or not as whom it was asked; an arm ``on`` that no policy changes, or one
            ``off`` that some policy does; answers so short that nothing can be timed.
    """
    return asyncio.run(_load(ways, load, progress))


async def _load(
    ways: Sequence[Way], load: Load, progress: Callable[[float], None]
) -> tuple[ServedArm, ...]:
    chance = random.Random(load.seed)
    blocks: dict[str, list[_Block]] = {way.name: [] for way in ways}
    for number in range(-1, load.n_rounds):  # the first warms caches and is not counted
        found = {}
        limits = load.limits(chance)
        if number < 0:
            del limits[load.n_clients :]
        for done, way in enumerate(chance.sample(ways, len(ways))):
            found[way.name] = await _block(way, load, limits, chance)
            progress((number + 1 + (done + 1) / len(ways)) / (load.n_rounds + 1))
        if number < 0:
            for name, block in found.items():
                _check(name, block)
            continue
        for name, block in found.items():
            blocks[name].append(block)
    return _arms(blocks)


async def _block(way: Way, load: Load, limits: Sequence[int], chance: random.Random) -> _Block:
    block = _Block()
    # One list for all clients: none is done long before the others.
    requests = iter([(limit, " ".join(chance.choices(WORDS, k=load.n_prompt))) for limit in limits])

    async def one(client: httpx.AsyncClient, index: int) -> None:
        headers = way.headers[index % len(way.headers)]
        for limit, prompt in requests:
            try:
                answer = await _answer(client, way.url, headers, prompt, limit, load.seed)
                block.answers.append(answer)
            except (httpx.HTTPError, _NoAnswer) as error:
                block.failures.append((str(error) or repr(error))[:_SHOWN])
                return  # or who is refused at once would take the others' requests, and be refused again

    # A connection that is kept while other arms have their turn may be closed at the moment in which it is used.
    pool = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=pool) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client, index) for index in range(load.n_clients)))
        block.seconds = time.perf_counter() - began
    return block


class _NoAnswer(Exception):
    """The server answered something else."""


async def _answer(
    client: httpx.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    prompt: str,
    limit: int,
    seed: int,
) -> _Answer:
    asked = {
        "prompt": prompt,
        "max_tokens": limit,
        "temperature": 1.0,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    came: list[float] = []
    usage: Mapping[str, Any] | None = None
    place = f"{url.rstrip('/')}/completions"
    async with client.stream("POST", place, json=asked, headers=headers) as stream:
        if stream.status_code != 200:
            body = (await stream.aread()).decode(errors="replace")
            raise _NoAnswer(f"{stream.status_code} {body}")
        async for line in stream.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            told = json.loads(line.removeprefix("data: "))
            if "error" in told:
                raise _NoAnswer(line)
            usage = told.get("usage") or usage
            if any(choice["text"] for choice in told["choices"]):
                came.append(now)
    if not came:
        raise _NoAnswer("an answer without a text")
    rules = stream.headers.get("x-scope-interventions")
    return _Answer(
        first_s=came[0] - began,
        gaps_s=tuple(float(gap) for gap in np.diff(came)),
        n_tokens=usage["completion_tokens"] if usage else len(came),
        interventions=int(rules) if rules is not None else None,
    )


def _check(name: str, block: _Block) -> None:
    if not block.answers:
        raise UsageError(f"the endpoint does not answer the arm {name!r}", found=block.failures[0])
    rules = _rules([block])
    if name == ON and rules == (0,):
        raise UsageError(
            f"no policy changes the answers of the arm {name!r}",
            found="x-scope-interventions: 0",
            hint="Give it a key or labels that a policy selects",
        )
    if name == OFF and any(rules):
        raise UsageError(
            f"a policy changes the answers of the arm {name!r}",
            found=f"x-scope-interventions: {', '.join(map(str, rules))}",
            hint="Give it a key that no policy selects: --off-api-key-file",
        )


def _rules(blocks: Sequence[_Block]) -> tuple[int, ...]:
    told = {answer.interventions for block in blocks for answer in block.answers}
    return tuple(sorted(each for each in told if each is not None))


def _arms(blocks: Mapping[str, list[_Block]]) -> tuple[ServedArm, ...]:
    # A round counts where every arm has something to be compared by.
    n_rounds = len(next(iter(blocks.values())))
    whole = [i for i in range(n_rounds) if all(each[i].gaps_s for each in blocks.values())]
    if len(whole) < 2:
        failures = [failure for each in blocks.values() for one in each for failure in one.failures]
        raise UsageError(
            "nearly no answer was long enough to be timed",
            found=failures[0] if failures else f"{len(whole)} whole rounds",
            expected="2 or more",
        )
    base = [blocks[OFF][i] for i in whole] if OFF in blocks else None
    return tuple(_arm(name, each, [each[i] for i in whole], base) for name, each in blocks.items())


def _arm(
    name: str, every: list[_Block], blocks: list[_Block], base: list[_Block] | None
) -> ServedArm:
    failures = [failure for block in every for failure in block.failures]
    compared = base if name != OFF else None
    return ServedArm(
        name=name,
        n_requests=sum(len(block.answers) + len(block.failures) for block in every),
        n_failed=len(failures),
        failure=failures[0] if failures else None,
        n_tokens=sum(answer.n_tokens for block in blocks for answer in block.answers),
        interventions=_rules(blocks),
        tokens_per_s=median(block.tokens_per_s for block in blocks),
        first_token_ms=_spread([block.first_s for block in blocks]),
        between_ms=_spread([block.gaps_s for block in blocks]),
        throughput_ratio=None
        if compared is None
        else paired_ratio([[b.tokens_per_s] for b in blocks], [[b.tokens_per_s] for b in compared]),
        first_token_p50_ratio=None
        if compared is None
        else pooled_ratio([b.first_s for b in blocks], [b.first_s for b in compared], 50),
        between_p99_ratio=None
        if compared is None
        else pooled_ratio([b.gaps_s for b in blocks], [b.gaps_s for b in compared], 99),
    )


def _spread(rounds: Sequence[Sequence[float]]) -> Spread:
    p50, p99 = np.percentile(np.concatenate([np.asarray(each) for each in rounds]), [50, 99])
    return Spread(round(float(p50) * 1e3, 3), round(float(p99) * 1e3, 3))
