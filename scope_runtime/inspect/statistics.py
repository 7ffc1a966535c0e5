"""Two kinds of texts, one column a feature: how far apart they lie, and whether chance alone would put them there."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from scope_runtime.pack_types import I64Array

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_CHUNK = 1_000


def ranks(values: npt.NDArray[np.floating]) -> Floats:
    """Ranks within each column from 1; equals share their mean. (n_texts, n_features)."""
    n = len(values)
    order = np.argsort(values, axis=0, kind="stable")
    ascending = np.take_along_axis(values, order, axis=0)
    place = np.arange(n)[:, None]
    opens = np.ones(ascending.shape, np.bool_)
    opens[1:] = ascending[1:] != ascending[:-1]
    closes = np.ones(ascending.shape, np.bool_)
    closes[:-1] = opens[1:]
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=0)
    last = np.minimum.accumulate(np.where(closes, place, n)[::-1], axis=0)[::-1]
    out = np.empty(values.shape)
    np.put_along_axis(out, order, (first + last) / 2 + 1, axis=0)
    return out


def auroc(values: npt.NDArray[np.floating], positive: Bools) -> Floats:
    """Per feature the chance that a positive text lies above a negative one, equals counted half.

    Args:
        values: (n_texts, n_features).
        positive: which texts are, (n_texts,); at least one is and one is not.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    sums = ranks(values)[positive].sum(axis=0)
    return np.asarray((sums - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def effect_size(values: npt.NDArray[np.floating], positive: Bools) -> Floats:
    """Hedges' g per feature: the means' difference in pooled standard deviations, corrected for small samples.

    Where neither kind varies it is 0 or infinite.
    """
    high, low = values[positive].astype(np.float64), values[~positive].astype(np.float64)
    freedom = max(len(values) - 2, 1)
    squares = ((high - high.mean(axis=0)) ** 2).sum(axis=0)
    squares = squares + ((low - low.mean(axis=0)) ** 2).sum(axis=0)
    difference = high.mean(axis=0) - low.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = difference / np.sqrt(squares / freedom) * (1 - 3 / (4 * freedom - 1))
    return np.where(difference == 0, 0.0, g)


def arrangements(positive: Bools) -> int:
    """In how many ways the kinds could be dealt to the texts; 1 over it is the least p-value."""
    return math.comb(len(positive), int(positive.sum()))


def adjusted_p(
    values: npt.NDArray[np.floating], positive: Bools, *, n_permutations: int, seed: int
) -> Floats:
    """Per feature the chance that any of them all would separate so well, were the kinds dealt by chance.

    A Westfall-Young single-step max-T permutation test on standardised rank sums, one-sided (larger in
    positive texts). The chance that any feature comes out at or below ``a`` while the kinds mean
    nothing is at most ``a``, however many there are and however they hang together.

    Args:
        values: (n_texts, n_features).
        positive: which texts are.
        n_permutations: drawn; the least p-value is one over them and one.
        seed: of the draws.
    """
    n, n_positive = len(positive), int(positive.sum())
    centred = ranks(values) - (n + 1) / 2
    # The rank sum's variance over all deals, ties included.
    spread = np.sqrt(n_positive * (n - n_positive) / (n * max(n - 1, 1)) * (centred**2).sum(axis=0))
    score = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    observed = score[positive].sum(axis=0)
    rng = np.random.default_rng(seed)
    exceeded = np.zeros(values.shape[1], np.int64)
    for start in range(0, n_permutations, _CHUNK):
        n_drawn = min(_CHUNK, n_permutations - start)
        dealt = np.zeros((n_drawn, n))
        chosen = rng.random((n_drawn, n)).argpartition(n_positive - 1, axis=1)[:, :n_positive]
        np.put_along_axis(dealt, chosen, 1.0, axis=1)
        largest = (dealt @ score).max(axis=1)
        exceeded += (largest[:, None] >= observed - 1e-9).sum(axis=0)
    return np.asarray((exceeded + 1) / (n_permutations + 1))


def halves(positive: Bools, *, seed: int) -> tuple[I64Array, I64Array]:
    """Two halves with equal shares of both kinds, as texts' numbers, ascending.

    Where there are as many of one kind as of the other they are taken as pairs, in their order, and
    a pair stays together: what both have in common then tells no half anything about the other.
    """
    rng = np.random.default_rng(seed)
    high, low = np.flatnonzero(positive), np.flatnonzero(~positive)
    order = rng.permutation(len(high))
    other = order if len(high) == len(low) else rng.permutation(len(low))
    one = [high[order[0::2]], low[other[0::2]]]
    two = [high[order[1::2]], low[other[1::2]]]
    return np.sort(np.concatenate(one)), np.sort(np.concatenate(two))
