"""Two samples of requests: how far apart they lie, and whether chance alone would put them there.

The unit is the request: tokens of one answer hang together, so tests that count tokens see drift in every answer.
How far: the population stability index over bins of the baseline. Whether: a permutation test, which knows nothing of
the measurements' distribution and holds for small samples too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

N_BINS = 10
_SMOOTHING = 0.5
_CHUNK = 100
_FEWEST_EXCEEDED = 10


@dataclass(frozen=True, slots=True, eq=False)
class Stability:
    """The population stability index and the bins that it was taken over.

    Attributes:
        psi: sum over bins of (q - p) ln(q / p), half a request added to every bin.
        edges: the largest value of every bin but the last, ascending. A value that fills more than one bin of the
            baseline alone (a feature that is mostly 0, say) has a bin of its own.
        baseline, window: requests per bin, one more than edges.
    """

    psi: float
    edges: Floats
    baseline: npt.NDArray[np.int64]
    window: npt.NDArray[np.int64]


def stability(baseline: Floats, window: Floats, n_bins: int = N_BINS) -> Stability:
    """The index over quantile bins of the baseline, each sample (n,) without NaN, none empty."""
    pool = _Pool(baseline, window, n_bins)
    bounds, n_baseline, n_window = pool.cells(pool.baseline[None])
    kept = np.flatnonzero((n_baseline + n_window)[0])
    ends = bounds[0, 1:][kept][:-1]
    edges = pool.values[ends - 1]
    return Stability(
        float(_psi(n_baseline, n_window)[0][0]), edges, n_baseline[0, kept], n_window[0, kept]
    )


def p_values(
    pairs: Sequence[tuple[Floats, Floats]],
    *,
    alpha: float,
    seed: int,
    n_bins: int = N_BINS,
    n_permutations: int | None = None,
) -> Floats:
    """For each pair of samples the chance that any of them all would differ as much, were nothing different.

    A Westfall-Young single-step max-T permutation test: requests, with all that was measured in them, change places
    between baseline and window; each time the largest score of all pairs is taken. So the chance that any pair at all
    comes out at or below ``alpha`` while nothing changed is at most ``alpha``, however the pairs hang together.

    Args:
        pairs: baseline (n_baseline,) and window (n_window,) of one measurement each; NaN where a request has none.
            Every baseline has one length, and so has every window: the same requests.
        alpha: the level that the result will be held against. Once it is certain that nothing lies below it, no more
            permutations are drawn; p-values above it are then rough.
        seed: of the permutations.
        n_permutations: most of them; by default as many as ``alpha`` needs.
    """
    if not pairs:
        return np.empty(0)
    pools = [_Pool(a, b, n_bins) for a, b in pairs]
    observed = np.array([pool.score(pool.baseline[None])[0] for pool in pools])
    most = n_permutations if n_permutations is not None else permutations_for(alpha)
    enough = max(_FEWEST_EXCEEDED, math.floor(alpha * (most + 1)))
    rng = np.random.default_rng(seed)
    n_requests = len(pairs[0][0]) + len(pairs[0][1])
    exceeded = np.zeros(len(pools), np.int64)
    drawn = 0
    while drawn < most and (not drawn or exceeded.min() < enough):
        n = min(_CHUNK, most - drawn)
        keys = rng.random((n, n_requests), np.float32)
        seen: dict[bytes, Bools] = {}
        largest = np.full(n, -np.inf)
        for pool in pools:
            name = pool.has.tobytes() + pool.n_baseline.to_bytes(8, "little")
            if name not in seen:
                seen[name] = _drawn(keys[:, pool.has], pool.n_baseline)
            largest = np.maximum(largest, pool.score(seen[name][:, pool.order]))
        exceeded += (largest[:, None] >= observed - 1e-9).sum(axis=0)
        drawn += n
    return np.asarray((exceeded + 1) / (drawn + 1))


def permutations_for(alpha: float) -> int:
    """So many that two of them above what was seen still count as less than ``alpha``; 1,999 at least."""
    return max(1_999, math.ceil(2 / alpha) - 1)


def _drawn(keys: npt.NDArray[np.float32], n_baseline: int) -> Bools:
    """(n, n_requests): the requests with the smallest keys of each row are the baseline."""
    out = np.zeros(keys.shape, np.bool_)
    n = keys.shape[1]
    if n_baseline >= n:
        out[:] = True
    elif n_baseline:
        chosen = np.argpartition(keys, n_baseline, axis=1)[:, :n_baseline]
        np.put_along_axis(out, chosen, True, axis=1)
    return out


class _Pool:
    """Both samples of one measurement in one ascending row, so that changing places is choosing a mask.

    Attributes:
        has: which requests have the measurement, (n_baseline + n_window of all requests,).
        order: from those that have it to ascending values.
        values: ascending, (n,).
        baseline: which of them are the baseline's, (n,).
    """

    def __init__(self, baseline: Floats, window: Floats, n_bins: int) -> None:
        every = np.concatenate([baseline, window])
        self.has = ~np.isnan(every)
        found = every[self.has]
        self.order = np.argsort(found, kind="stable")
        self.values = found[self.order]
        self.n_baseline = int(self.has[: len(baseline)].sum())
        self.n_window = len(found) - self.n_baseline
        self.baseline = self.order < self.n_baseline
        self._first = np.searchsorted(self.values, self.values, "left")
        self._after = np.searchsorted(self.values, self.values, "right")
        shares = np.arange(1, n_bins) / n_bins
        self._ranks = np.maximum(np.ceil(shares * self.n_baseline - 1e-9).astype(int) - 1, 0)
        n = len(found)
        self._variance = float(self.values.var(ddof=1)) if n > 1 else 0.0
        # Values that differ by rounding alone are one value.
        if n and self._variance <= (1e-12 * float(np.abs(self.values).max())) ** 2:
            self._variance = 0.0

    def cells(
        self, masks: Bools
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Bins by the quantiles of each row's baseline: their bounds, and how many of each sample they hold."""
        rows, n = masks.shape
        below = np.zeros((rows, n + 1), np.int32)
        np.cumsum(masks, axis=1, dtype=np.int32, out=below[:, 1:])
        members = np.flatnonzero(masks).reshape(rows, self.n_baseline)[:, self._ranks]
        places = members - np.arange(rows)[:, None] * n
        first, after = self._first[places], self._after[places]
        repeats = first[:, 1:] == first[:, :-1]
        alone = np.zeros(first.shape, np.bool_)
        alone[:, 1:] |= repeats
        alone[:, :-1] |= repeats
        ends = np.full((rows, 1), n)
        bounds = np.concatenate([0 * ends, np.where(alone, first, after), after, ends], axis=1)
        bounds.sort(axis=1)
        n_baseline = np.diff(np.take_along_axis(below, bounds, axis=1), axis=1)
        return bounds, n_baseline, np.diff(bounds, axis=1) - n_baseline

    def score(self, masks: Bools) -> Floats:
        """Per row how unlike the two samples are, in standard deviations: of the index or of the mean's change.

        The index becomes one by Wilson and Hilferty's cube root, as times n_baseline n_window / (n_baseline +
        n_window) it is nearly chi-squared. How nearly does not matter to the test; it weighs the two alike.
        """
        if not self.n_baseline or not self.n_window or not self._variance:
            return np.zeros(len(masks))
        _, n_baseline, n_window = self.cells(masks)
        psi, n_cells = _psi(n_baseline, n_window)
        scale = self.n_baseline * self.n_window / (self.n_baseline + self.n_window)
        freedom = np.maximum(n_cells - 1, 1)
        small = 2 / (9 * freedom)
        by_index = (np.cbrt(psi * scale / freedom) - (1 - small)) / np.sqrt(small)
        total = float(self.values.sum())
        of_baseline = masks @ self.values
        change = (total - of_baseline) / self.n_window - of_baseline / self.n_baseline
        return np.asarray(np.maximum(by_index, np.abs(change) * math.sqrt(scale / self._variance)))


def _psi(
    n_baseline: npt.NDArray[np.int64], n_window: npt.NDArray[np.int64]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """The index of each row of counts, and how many bins of it hold anything."""
    held = (n_baseline + n_window) > 0
    n_cells = held.sum(axis=1)
    p, q = (
        (n + _SMOOTHING) / (n.sum(axis=1) + _SMOOTHING * n_cells)[:, None]
        for n in (n_baseline, n_window)
    )
    return np.where(held, (q - p) * np.log(q / p), 0.0).sum(axis=1), n_cells
