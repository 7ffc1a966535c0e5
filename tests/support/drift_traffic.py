"""Requests as the runtime puts them on record, with measurements of our choosing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scope_runtime.drift.baseline import Baseline
from scope_runtime.drift.measure import Collector, Request, Sample, sample
from scope_runtime.events import Event, Kind

MODEL, PACK, REVISION = "sha256:model", "sha256:pack", "sha256:revision"
N_TOKENS = 50
TIMES = int(os.environ.get("SCOPE_DRIFT_TIMES", "1"))
"""How many times as many draws the simulations take; ``scripts/long-tests`` asks for more."""


def bound(n: int, p: float, tail: float = 0.001) -> int:
    """The least count that a binomial exceeds with a chance below ``tail``."""
    total, k = 0.0, -1
    while total < 1 - tail:
        k += 1
        total += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(p)
            + (n - k) * math.log1p(-p)
        )
    return k


def answered(
    n: int,
    rules: Mapping[str, Sequence[float]],
    *,
    time: float | None = None,
    labels: Mapping[str, str] | None = None,
    model: str = MODEL,
    pack: str = PACK,
    revision: str = REVISION,
    policy: str | None = "p",
    mode: str = "audit",
    feature: str = "f (layer 1, id 2)",
    n_tokens: int = N_TOKENS,
) -> list[Event]:
    """The records of one request: per rule (n_fired, mean, max), then the summary."""
    common: dict[str, Any] = {
        "kind": Kind.REQUEST,
        "time": 1000.0 + n if time is None else time,
        "request_id": f"r{n}",
        "labels": labels or {},
    }
    digests = {"digests": {"model": model, "packs": {"any/where.gguf": pack}}}
    events = [
        Event(
            what="rule",
            rule=name,
            op="alert",
            mode=mode,
            features=(feature,),
            detail={
                **({"policy": policy} if policy else {}),
                "revision": revision,
                "n_tokens": n_tokens,
                "n_fired": int(fired),
                "activation": {"mean": float(mean), "max": float(largest)},
                **digests,
            },
            **common,
        )
        for name, (fired, mean, largest) in rules.items()
    ]
    return [*events, Event(what="summary", detail=digests, **common)]


def drawn(rng: np.random.Generator, shift: float = 0.0) -> dict[str, tuple[float, float, float]]:
    """A request's measurements of two rules that hang together; ``shift`` is in standard deviations of the first."""
    level = rng.normal() + shift
    seldom = rng.random() < 0.1
    largest = float(np.exp(level + 0.3 * rng.normal()))
    return {
        "dense": (rng.binomial(N_TOKENS, 0.2), level, level + abs(rng.normal())),
        "seldom": (3, largest / 20, largest) if seldom else (0, 0.0, 0.0),
    }


def requests(
    events: Sequence[Sequence[Event]], labels: Mapping[str, str] | None = None
) -> list[Request]:
    collector = Collector(labels)
    found = [collector.add(event.record()) for one in events for event in one]
    return [request for request in found if request is not None]


def traffic(seed: int, n: int, shift: float = 0.0, **options: Any) -> Sample:
    rng = np.random.default_rng(seed)
    return sample(requests([answered(i, drawn(rng, shift), **options) for i in range(n)]))


def baseline(seed: int, n: int, **options: Any) -> Baseline:
    return Baseline(traffic(seed, n, **options), "log", {})
