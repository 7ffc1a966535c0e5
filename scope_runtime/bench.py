"""Tokens a second with a policy on and off, measured in turns in one run, so that a busy machine slows both alike.

Three arms take turns in an order drawn anew for each round: ``off`` (no policy), ``off again`` (the same, so that its
ratio to ``off`` shows what the machine's noise alone does) and ``on``. Every answer continues tokens drawn at random,
another prompt each time, so that no cache helps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scope_runtime.errors import UsageError
from scope_runtime.paired import Ratio, paired_ratio
from scope_runtime.runtime import Runtime

OFF, AGAIN, ON = "off", "off again", "on"
ARMS = (OFF, AGAIN, ON)
NEVER = -1e6  # bias of the tokens that would end an answer: all answers are of one length


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: tokens of a prompt and of an answer, and rounds of all arms."""

    n_prompt: int = 256
    n_answer: int = 64
    n_rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_prompt", 2), ("n_answer", 2), ("n_rounds", 2)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name} is too small", found=str(getattr(self, name)), expected=f"{least}"
                )


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm's figures: medians of tokens a second, and how many times ``off``'s time a token took.

    Attributes:
        n_tokens: answer tokens that were timed.
        prompt_ratio, decode_ratio: None for ``off`` itself.
    """

    name: str
    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    n_tokens: int
    prompt_ratio: Ratio | None
    decode_ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class _Sample:
    """One answer: seconds a token, and how many tokens came after the first."""

    prompt_s: float
    decode_s: float
    n_decoded: int


def measure(
    runtime: Runtime,
    policy: str | Path,
    plan: Plan,
    *,
    labels: Mapping[str, str] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Arm, ...]:
    """Runs the rounds on a runtime that follows no policies; leaves it without a policy.

    Args:
        labels: of every request, for policies that select by them.

    Raises:
        ScopeError: the policy cannot be carried out, or prompt and answer do not fit the context.
        UsageError: the model ended its answers so early that nothing could be timed.
    """
    rng = random.Random(plan.seed)
    on = runtime.compile(policy)
    off = runtime.compile(None)
    samples: dict[str, list[_Sample | None]] = {name: [] for name in ARMS}
    try:
        for number in range(-1, plan.n_rounds):  # the first warms caches and is not counted
            order = rng.sample(ARMS, len(ARMS))
            found = {}
            for done, name in enumerate(order):
                runtime.take_up(on if name == ON else off, what="bench")
                found[name] = _one(runtime, plan, rng, labels or {})
                progress((number + 1 + (done + 1) / len(ARMS)) / (plan.n_rounds + 1))
            if number >= 0:
                for name in ARMS:
                    samples[name].append(found[name])
    finally:
        runtime.take_up(off, what="bench")
    return _arms(samples)


def _one(
    runtime: Runtime, plan: Plan, rng: random.Random, labels: Mapping[str, str]
) -> _Sample | None:
    prompt = [rng.randrange(runtime.n_vocab) for _ in range(plan.n_prompt)]
    answer = runtime.generate(
        prompt,
        max_tokens=plan.n_answer,
        temperature=1.0,
        seed=rng.randrange(2**31),
        logit_bias=dict.fromkeys(runtime.end_tokens, NEVER),
        labels=labels,
    )
    timing = answer.report[-1].detail["timing"]
    n_decoded = len(answer.tokens) - 1
    if n_decoded < 1:
        return None  # a policy's abort came first
    return _Sample(
        timing["prompt_s"] / plan.n_prompt, timing["generation_s"] / n_decoded, n_decoded
    )


def _arms(samples: Mapping[str, list[_Sample | None]]) -> tuple[Arm, ...]:
    kept: dict[str, list[_Sample]] = {name: [] for name in ARMS}
    for each in zip(*(samples[name] for name in ARMS), strict=True):
        whole = [sample for sample in each if sample is not None]
        if len(whole) == len(ARMS):
            for name, sample in zip(ARMS, whole, strict=True):
                kept[name].append(sample)
    if len(kept[OFF]) < 2:
        raise UsageError(
            "the policy ended nearly every answer before a token could be timed",
            found=f"{len(kept[OFF])} whole rounds",
            expected="2 or more",
            hint="Measure it with mode: audit, or without its abort",
        )
    return tuple(_arm(name, kept[name], kept[OFF]) for name in ARMS)


def _arm(name: str, samples: list[_Sample], off: list[_Sample]) -> Arm:
    prompt, decode = ([[getattr(s, key)] for s in samples] for key in ("prompt_s", "decode_s"))
    return Arm(
        name,
        prompt_tokens_per_s=1 / median(s.prompt_s for s in samples),
        decode_tokens_per_s=1 / median(s.decode_s for s in samples),
        n_tokens=sum(s.n_decoded for s in samples),
        prompt_ratio=None if name == OFF else paired_ratio(prompt, [[s.prompt_s] for s in off]),
        decode_ratio=None if name == OFF else paired_ratio(decode, [[s.decode_s] for s in off]),
    )
