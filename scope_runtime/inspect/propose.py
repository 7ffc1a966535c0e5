"""From measurements at several strengths to one: the least that does what can be done within what it may cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scope_runtime.inspect.statistics import Floats

N_BOOTSTRAP = 2_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Limits:
    """What a strength may cost, and how much effect may be left on the table.

    Attributes:
        perplexity: largest ratio of the collateral texts' perplexity to that without the rule.
        cases: smallest share of collateral cases that must hold.
        short_of_best: how far the effect may lie below the best within the limits.
    """

    perplexity: float = 1.05
    cases: float = 0.95
    short_of_best: float = 0.05


@dataclass(frozen=True, slots=True)
class Proposal:
    """A strength, with the interval that 95 % of the bootstrap's choices lie in.

    Attributes:
        strength: None: nothing within the limits does anything.
        low, high: of the interval, over the draws that chose something.
        chosen: share of the draws that chose something.
        effect: at the strength, with its interval.
    """

    strength: float | None
    low: float | None = None
    high: float | None = None
    chosen: float = 0.0
    effect: tuple[float, float, float] | None = None


def interval(samples: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled(values: Floats, rng: np.random.Generator) -> Floats:
    """Means over columns drawn anew with replacement, the same for each row: (n_strengths, N_BOOTSTRAP)."""
    n = values.shape[1]
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP)
    return np.asarray(values @ drawn.T / n)


def propose(
    strengths: Floats,
    effect: Floats,
    nll: Floats | None,
    cases: Floats | None,
    limits: Limits,
    seed: int = 0,
) -> Proposal:
    """The smallest strength whose effect comes within `Limits.short_of_best` of the best that the limits allow.

    Args:
        strengths: (n,), the first is none at all.
        effect: whether each target case holds, 0 or 1, (n, n_cases).
        nll: nats a token of each collateral text, (n, n_texts).
        cases: whether each collateral case holds, (n, n_cases).
        limits: what it may cost.
        seed: of the bootstrap, over cases and texts.
    """
    rng = np.random.default_rng(seed)

    def means(values: Floats | None) -> Floats | None:
        return None if values is None else values.mean(axis=1)[:, None]

    def drawn(values: Floats | None) -> Floats | None:
        return None if values is None else resampled(values, rng)

    effects = resampled(effect, rng)
    point = _choice(strengths, effect.mean(axis=1)[:, None], means(nll), means(cases), limits)[0]
    chosen = _choice(strengths, effects, drawn(nll), drawn(cases), limits)
    some = chosen[~np.isnan(chosen)]
    if np.isnan(point):
        return Proposal(None, chosen=len(some) / len(chosen))
    low, high = interval(some) if len(some) else (None, None)
    row = int(np.flatnonzero(strengths == point)[0])
    there = (float(effect[row].mean()), *interval(effects[row]))
    return Proposal(float(point), low, high, len(some) / len(chosen), there)


def _choice(
    strengths: Floats, effect: Floats, nll: Floats | None, cases: Floats | None, limits: Limits
) -> Floats:
    """Per column the strength, NaN where nothing does; every argument (n_strengths, n_columns)."""
    allowed = np.ones(effect.shape, np.bool_)
    if nll is not None:
        allowed &= nll - nll[0] <= np.log(limits.perplexity)
    if cases is not None:
        allowed &= cases >= limits.cases
    within = np.where(allowed, effect, -np.inf)
    best = within.max(axis=0)
    good = (within >= best - limits.short_of_best) & (within > effect[0])
    size = np.where(good, np.abs(strengths)[:, None], np.inf)
    first = size.argmin(axis=0)
    return np.where(good.any(axis=0), strengths[first], np.nan)
