"""Many short requests under mixed policies while these reload and clients hang up; every answer against its record.

python -m tests.serve.soak --requests 10000 --parallel 4
python -m tests.serve.soak --requests 10000 --engine llama-server
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.serve.conftest import CONFIG, OTHER, USER, Server, furnish, serving

CLIENTS = 8
RELOAD_S = 0.2
HANG_UP = 0.05
PROMPTS = ("the sea is", "The river", "a small city")
GROWTH = 0.05
"""Of the resident memory at half time: what may come on top until the end."""
FILLS_MEMORY = 10_000
"""Requests; of fewer, the events that a runtime keeps are not all there at half time."""

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: {name}, generation: {generation}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  selector: {selector}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: {feature}}}
  rules:
    - {{name: {name}, amplify: f, alpha: {alpha}{when}}}
"""
POLICIES = (
    # The first makes no difference between prompt and answer: over llama-server, only such KV is ever kept.
    ("of-acme", "{tenant: acme}", 767, ""),
    ("of-globex", "{tenant: globex}", 28, ", when: {phase: prompt}"),
    ("of-search", "{team: search}", 843, ", when: {phase: generation}"),
)
TEAMS = ("", "team=search", "team=travel")

Record = dict[str, Any]


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answers: request id to what the response said of the policies.
        n_reused: request id to the prompt tokens that the response said were not computed.
        misheaded: whose head named another revision than that of the first position.
        failed: whatever was no answer and no hang-up.
        rss_mib: of the server and its children, at every tenth of the requests.
        longest_stall_s: that the clients' own process was held up: on such a machine a time limit says little.
    """

    answers: dict[str, Record] = field(default_factory=dict)
    n_reused: dict[str, int] = field(default_factory=dict)
    misheaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    n_hung_up: int = 0
    n_reloads: int = 0
    rss_mib: list[int] = field(default_factory=list)
    longest_stall_s: float = 0.0

    @property
    def n_mixed(self) -> int:
        """Answers whose policies changed under way."""
        return sum(len(told["revisions"]) > 1 for told in self.answers.values())

    @property
    def grew(self) -> bool:
        """Whether memory was not flat."""
        return self.rss_mib[-1] > self.rss_mib[5] * (1 + GROWTH)


@dataclass(frozen=True)
class Faults:
    """What must be empty, by request id.

    Attributes:
        untrue: the response's spans are not those of the one record of it.
        overlapping: a position under two revisions, or under none.
        unknown: a revision that was never in force.
        foreign: began on KV that another program had computed.
        misheaded: the response's head named another revision than that of the first position.
    """

    untrue: list[str]
    overlapping: list[str]
    unknown: list[str]
    foreign: list[str]
    misheaded: list[str]

    @property
    def any(self) -> bool:
        return any(getattr(self, name) for name in _NAMES)


def faults(seen: Seen, records: Sequence[Record]) -> Faults:
    """Holds what clients were told, and what is on record, against each other."""
    summaries = [record for record in records if record["what"] == "summary"]
    by_id: dict[str, list[Record]] = {}
    for record in summaries:
        by_id.setdefault(record["request_id"], []).append(record)
    in_force = {record["revision"] for record in records if record["what"] in ("swapped", "loaded")}
    untrue = []
    for name, told in seen.answers.items():
        mine = by_id.get(name, [])
        if (
            len(mine) != 1
            or mine[0]["revisions"] != told["revisions"]
            or mine[0]["n_reused"] != seen.n_reused[name]
        ):
            untrue.append(name)
    return Faults(
        untrue=untrue,
        overlapping=[r["request_id"] for r in summaries if not _in_order(r)],
        unknown=[
            r["request_id"]
            for r in summaries
            if not {span["revision"] for span in r["revisions"]} <= in_force
        ],
        foreign=list(_foreign(summaries)),
        misheaded=seen.misheaded,
    )


def _in_order(record: Record) -> bool:
    starts = [span["from_position"] for span in record["revisions"]]
    return starts == sorted(set(starts)) and (not starts or starts[0] == 0)


def _foreign(summaries: Sequence[Record]) -> Iterator[str]:
    """Requests that took over KV of positions which the sequence's last request had under another program.

    A program is told by its revision and the rules that a request does not get of it.
    """
    before: dict[int, Record] = {}
    for record in summaries:
        last = before.get(record["sequence"])
        n = record["n_reused"]
        if n:
            theirs = _programs(last, n) if last is not None else {None}
            if theirs != _programs(record, n) or len(theirs) != 1:
                yield record["request_id"]
        before[record["sequence"]] = record


def _programs(record: Record, n: int) -> set[Any]:
    """What the first ``n`` positions were computed under."""
    absent = tuple(sorted(record.get("left_out", {}).items()))
    return {(s["revision"], absent) for s in record["revisions"] if s["from_position"] < n}


async def _ask(client: httpx.AsyncClient, number: int, seen: Seen) -> None:
    chance = random.Random(number)
    name = f"soak-{number}"
    asked = {
        "prompt": f"{chance.choice(PROMPTS)} {chance.randrange(3)}",
        "max_tokens": chance.randrange(1, 12),
        "stream": chance.random() < 0.5,
        "stream_options": {"include_usage": True},
    }
    head = {"x-request-id": name, "x-scope-labels": chance.choice(TEAMS)}
    if chance.random() < HANG_UP:
        seen.n_hung_up += 1
        asked |= {"stream": True, "max_tokens": 50}
        with contextlib.suppress(httpx.HTTPError):
            async with client.stream("POST", "/completions", json=asked, headers=head) as stream:
                async for _ in stream.aiter_lines():
                    break
        return
    try:
        response = await client.post("/completions", json=asked, headers=head)
    except httpx.HTTPError as error:
        seen.failed.append(f"{name}: {error!r}")
        return
    if response.status_code != 200:
        seen.failed.append(f"{name}: {response.status_code} {response.text}")
        return
    last = response.text
    if asked["stream"]:
        *_, last, end = [line.removeprefix("data: ") for line in last.splitlines() if line]
        if end != "[DONE]":
            seen.failed.append(f"{name}: {end}")
            return
    told = json.loads(last)
    seen.answers[name] = told["scope"]
    if response.headers["x-scope-revision"] != told["scope"]["revisions"][0]["revision"]:
        seen.misheaded.append(name)
    seen.n_reused[name] = told["usage"]["prompt_tokens_details"]["cached_tokens"]


def policy(number: int, generation: int) -> str:
    """The text of one of the policies; each generation pushes a little differently."""
    name, selector, feature, when = POLICIES[number]
    return POLICY.format(
        name=name,
        generation=generation,
        selector=selector,
        feature=feature,
        when=when,
        alpha=1 + generation % 7,
    )


async def _reload(server: Server, seen: Seen) -> None:
    while True:
        seen.n_reloads += 1
        number = seen.n_reloads % len(POLICIES)
        path = server.folder / "policies" / f"{POLICIES[number][0]}.yaml"
        new = path.with_name(".new")
        new.write_text(policy(number, seen.n_reloads + 1), encoding="utf-8")
        new.rename(path)
        before = time.monotonic()
        await asyncio.sleep(RELOAD_S)
        late_s = time.monotonic() - before - RELOAD_S
        seen.longest_stall_s = max(seen.longest_stall_s, late_s)


def _rss_mib(pid: int) -> int:
    """Of a process and its children."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    mine = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
    # Each thread has children of its own.
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for each in lists for child in each.read_text(encoding="ascii").split()]
    return mine + sum(_rss_mib(int(child)) for child in children)


async def soak(server: Server, n_requests: int) -> Seen:
    """Asks, reloads and hangs up; a server that answers nothing any more ends it by a time limit of each request."""
    seen = Seen()
    numbers = iter(range(n_requests))
    looks = {n_requests * tenth // 10 for tenth in range(10)}

    async def client(key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=120) as one:
            for number in numbers:
                if number in looks:
                    seen.rss_mib.append(_rss_mib(server.process.pid))
                await _ask(one, number, seen)

    reloading = asyncio.ensure_future(_reload(server, seen))
    try:
        await asyncio.gather(*(client(key) for key in (USER, OTHER) for _ in range(CLIENTS // 2)))
        seen.rss_mib.append(_rss_mib(server.process.pid))
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
    return seen


def furnished(folder: Path, parallel: int = 4) -> Path:
    """A site with a policy for each of two tenants and one for a team of both."""
    assert "parallel: 2" in CONFIG
    furnish(folder, CONFIG.replace("parallel: 2", f"parallel: {parallel}"))
    (folder / "policies" / "english-only.yaml").unlink()
    for number, (name, *_) in enumerate(POLICIES):
        text = policy(number, 1)
        (folder / "policies" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def over_llama_server(parallel: int) -> tuple[str, ...]:
    """Arguments of ``scope serve`` that have a stock llama-server compute."""
    from tests.support.stock_server import server_path

    engine = ("--config", "scope.yaml", "--engine", "llama-server")
    sizes = ("-np", str(parallel), "-c", str(512 * parallel), "-t", "1")
    return (*engine, "--llama-server", str(server_path()), "--", *sizes, "--no-repack")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs it and prints what came of it; 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--engine", choices=("embedded", "llama-server"), default="embedded")
    options = parser.parse_args(arguments)
    command = over_llama_server(options.parallel) if options.engine == "llama-server" else ()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(furnished(Path(folder) / "site", options.parallel), *command) as server,
    ):
        seen = asyncio.run(soak(server, options.requests))
        ended = server.stop()
        records = server.records()
    found = faults(seen, records)
    grew = seen.grew and options.requests >= FILLS_MEMORY
    revisions = sum(record["what"] == "swapped" for record in records)
    reused = sum(1 for n in seen.n_reused.values() if n)
    sys.stdout.write(
        f"{options.engine}, {options.parallel} side by side: {len(seen.answers)} answers and "
        f"{seen.n_hung_up} hang-ups in {time.monotonic() - began:.0f} s; {seen.n_reloads} changed files, "
        f"{revisions} taken up; {seen.n_mixed} answers under two revisions or more, "
        f"{reused} on kept KV\n"
        f"failed: {len(seen.failed)}; spans unlike the record: {len(found.untrue)}; "
        f"positions under two revisions: {len(found.overlapping)}; "
        f"unknown revisions: {len(found.unknown)}; "
        f"on another program's KV: {len(found.foreign)}; "
        f"another revision in the head: {len(found.misheaded)}\n"
        f"memory {' '.join(map(str, seen.rss_mib))} MiB{', NOT flat' if grew else ''}; "
        f"exit code {ended}; the clients themselves were held up for {seen.longest_stall_s:.1f} s at most\n"
    )
    for line in (*seen.failed[:5], *(f"{name}: {getattr(found, name)[:5]}" for name in _NAMES)):
        sys.stdout.write(f"{line}\n")
    return int(bool(seen.failed or found.any or grew or ended))


_NAMES = tuple(Faults.__dataclass_fields__)

if __name__ == "__main__":
    sys.exit(main())
