"""Two samples of texts, one column a feature: how far apart they lie in either direction, and whether by chance.

The unit is the text: tokens of one text hang together, so a test that counts tokens finds differences everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_EXACT = 4_096
"""Up to so many arrangements every one is tried."""
N_DRAWN = 4_999
"""Of more so many are drawn."""
_CHUNK_VALUES = 8 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Permutations:
    """How chance was judged: a Westfall-Young single-step max-T permutation test, two-sided.

    The chance that any feature comes out at or below ``a`` while nothing differs is at most ``a``, however many
    features there are and however they hang together.

    Attributes:
        p: per feature, adjusted for all of them.
        n_arrangements: that were tried: signs of the pairs' differences, or which texts are whose.
        exact: whether these are all that there are.
    """

    p: Floats
    n_arrangements: int
    exact: bool


def least_p(n_a: int, n_b: int, *, paired: bool) -> float:
    """The smallest p-value that so many texts can give; 1.0 where they can give none."""
    if paired:
        return min(2.0 ** (1 - n_a), 1.0)
    alike = 2 if n_a == n_b else 1
    return min(alike / math.comb(n_a + n_b, n_a), 1.0) if n_a > 1 and n_b > 1 else 1.0


def effects(a: Floats, b: Floats, *, paired: bool) -> Floats:
    """Per feature b's mean less a's in standard deviations, each increased by a spread that is common to all.

    The common spread (`_common`) keeps features that hardly do anything from leading the list: Tusher, Tibshirani
    and Chu 2001. Of pairs the standard deviation is that of their differences, else the pooled one.

    Args:
        a: (n_a, n_features).
        b: (n_b, n_features); of pairs n_b is n_a. Both samples have two texts or more.
    """
    if paired:
        signs = np.ones((1, len(a)))
        return np.asarray(_of_signs(b - a, signs)[0])
    mask = np.concatenate([np.zeros(len(a)), np.ones(len(b))])[None]
    return np.asarray(_of_masks(np.concatenate([a, b]), mask)[0])


def permuted(a: Floats, b: Floats, *, paired: bool, seed: int) -> Permutations:
    """Whether chance would set the samples so far apart. Arguments as of `effects`."""
    observed = np.abs(effects(a, b, paired=paired))
    rng = np.random.default_rng(seed)
    n_features = max(a.shape[1], 1)
    rows = max(_CHUNK_VALUES // n_features, 1)
    if paired:
        exact, arrangements = _signs(len(a), rng)
        scores = (_of_signs(b - a, part) for part in _parts(arrangements, rows))
    else:
        every = np.concatenate([a, b])
        exact, arrangements = _masks(len(a), len(b), rng)
        scores = (_of_masks(every, part) for part in _parts(arrangements, rows))
    largest = np.concatenate([np.abs(each).max(axis=1, initial=0.0) for each in scores])
    at_least = len(largest) - np.searchsorted(np.sort(largest), observed - 1e-9)
    n = len(arrangements)
    p = at_least / n if exact else (at_least + 1) / (n + 1)
    return Permutations(p, n, exact)


def _parts(arrangements: Floats, rows: int) -> Iterator[Floats]:
    for start in range(0, len(arrangements), rows):
        yield arrangements[start : start + rows]


def _signs(n: int, rng: np.random.Generator) -> tuple[bool, Floats]:
    if 2**n <= MOST_EXACT:
        return True, np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    return False, rng.choice(np.array([-1.0, 1.0]), (N_DRAWN, n))


def _masks(n_a: int, n_b: int, rng: np.random.Generator) -> tuple[bool, Floats]:
    n = n_a + n_b
    if math.comb(n, n_b) <= MOST_EXACT:
        out = np.zeros((math.comb(n, n_b), n))
        for row, of_b in zip(out, itertools.combinations(range(n), n_b), strict=True):
            row[list(of_b)] = 1.0
        return True, out
    out = np.zeros((N_DRAWN, n))
    drawn = rng.random((N_DRAWN, n)).argpartition(n_b - 1, axis=1)[:, :n_b]
    np.put_along_axis(out, drawn, 1.0, axis=1)
    return False, out


def _of_signs(differences: Floats, signs: Floats) -> Floats:
    """Effects (n_arrangements, n_features) of differences (n, n_features) whose signs are changed."""
    n = len(differences)
    squares = (differences**2).sum(axis=0)
    mean = signs @ differences / n
    spread = np.sqrt(np.maximum(squares - n * mean**2, 0) / (n - 1))
    return _ratio(mean, spread + _common(np.sqrt(squares / n)))


def _of_masks(values: Floats, masks: Floats) -> Floats:
    """Effects (n_arrangements, n_features) of values (n, n_features) where the mask says which are b's."""
    values = values - values.mean(axis=0)  # sums of squares lose nothing to a large mean
    n, n_b = len(values), float(masks[0].sum())
    n_a = n - n_b
    sum_b = masks @ values
    mean_a, mean_b = -sum_b / n_a, sum_b / n_b
    squares = (values**2).sum(axis=0)
    within = np.maximum(squares - n_a * mean_a**2 - n_b * mean_b**2, 0)
    return _ratio(mean_b - mean_a, np.sqrt(within / (n - 2)) + _common(np.sqrt(squares / n)))


def _common(spreads: Floats) -> float:
    """The median feature's spread over all texts: the same for every arrangement, so that the test holds."""
    some = spreads[spreads > 0]
    return float(np.median(some)) if len(some) else 0.0


def _ratio(difference: Floats, spread: Floats) -> Floats:
    return np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)
