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
N_POOLED_RESAMPLES = 1_000
CHUNK = 500


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
    ratios = np.divide(arm, base)
    if not ratios.size:
        raise ValueError("no block of this arm was measured")
    rng = np.random.default_rng(seed)
    n = len(ratios)
    drawn = [
        np.median(ratios[rng.integers(0, n, (CHUNK, n))].reshape(CHUNK, -1), axis=1)
        for _ in range(N_RESAMPLES // CHUNK)
    ]
    lower, upper = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(lower), float(upper), ratios.size)


def pooled_ratio(
    arm: Sequence[Sequence[float]], base: Sequence[Sequence[float]], percent: float, seed: int = 0
) -> Ratio:
    """The ratio of a percentile of all that an arm's rounds hold to the base's; whole rounds are drawn, in pairs."""

    def ratio(rounds: Sequence[int]) -> float:
        ours, theirs = (
            np.percentile(np.concatenate([np.asarray(each[r]) for r in rounds]), percent)
            for each in (arm, base)
        )
        return float(ours / theirs)

    n = len(arm)
    if not n or not all(map(len, (*arm, *base))):
        raise ValueError("a round of this arm was not measured")
    rng = np.random.default_rng(seed)
    drawn = [ratio(rng.integers(0, n, n).tolist()) for _ in range(N_POOLED_RESAMPLES)]
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    return Ratio(ratio(range(n)), float(lower), float(upper), n)
