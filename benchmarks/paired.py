"""Paired ratios: how much slower an arm is than no hook, with bounds.

Arms take turns in small blocks, so that what slows the machine slows them alike; each block gives one
ratio to the block beside it. Blocks of one round share their fate more than others, so the bootstrap
draws whole rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median ratio of an arm's time to no hook's, and the bounds of its 95 % interval."""

    median: float
    lower: float
    upper: float
    n_blocks: int


def paired_ratio(
    arm: Sequence[Sequence[float]], base: Sequence[Sequence[float]], seed: int = 0
) -> Ratio:
    """The ratio over rounds; ``arm[r][b]`` and ``base[r][b]`` are block b of round r, in seconds."""
    rounds = [np.divide(one, other) for one, other in zip(arm, base, strict=True) if len(one) > 0]
    if not rounds:
        raise ValueError("no block of this arm was measured")
    rng = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([rounds[i] for i in rng.integers(0, len(rounds), len(rounds))]))
        for _ in range(N_RESAMPLES)
    ]
    lower, upper = np.quantile(medians, [0.025, 0.975])
    every = np.concatenate(rounds)
    return Ratio(float(np.median(every)), float(lower), float(upper), len(every))
