"""Ranks, AUROC, effect sizes and p-values against their definitions, written out."""

from __future__ import annotations

import itertools
import statistics as reference

import numpy as np
import pytest

from scope_runtime.inspect.statistics import (
    adjusted_p,
    arrangements,
    auroc,
    effect_size,
    halves,
    ranks,
)


def drawn(seed: int, n: int = 12, columns: int = 5) -> np.ndarray:
    """Small numbers with many ties, as pooled activations have."""
    return np.random.default_rng(seed).integers(0, 5, (n, columns)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_share_their_mean_among_equals(seed: int) -> None:
    values = drawn(seed)
    for column, found in zip(values.T.tolist(), ranks(values).T.tolist(), strict=True):
        expected = [
            sum(other < one for other in column) + (sum(other == one for other in column) + 1) / 2
            for one in column
        ]
        assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    values = drawn(seed)
    positive = np.arange(12) % 3 == 0
    for column, found in zip(values.T, auroc(values, positive), strict=True):
        pairs = list(itertools.product(column[positive], column[~positive]))
        assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_effect_size_is_hedges_g() -> None:
    values = np.random.default_rng(3).normal(size=(15, 4)).astype(np.float32)
    positive = np.arange(15) < 6
    for column, found in zip(values.T.tolist(), effect_size(values, positive), strict=True):
        high, low = column[:6], column[6:]
        pooled = (5 * reference.variance(high) + 8 * reference.variance(low)) / 13
        d = (reference.mean(high) - reference.mean(low)) / pooled**0.5
        assert found == pytest.approx(d * (1 - 3 / (4 * 13 - 1)), rel=1e-5)


def test_what_never_varies_has_no_effect() -> None:
    flat = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    found = effect_size(flat, np.array([False, False, True, True]))
    assert found[0] == 0
    assert found[1] == np.inf


def test_p_is_the_share_of_all_deals_that_do_as_well() -> None:
    values = drawn(8, n=8, columns=3)
    values[:4, 0] += 3
    positive = np.arange(8) < 4
    centred = ranks(values) - 4.5
    score = centred / np.sqrt(4 * 4 / (8 * 7) * (centred**2).sum(axis=0))
    observed = score[positive].sum(axis=0)
    deals = list(itertools.combinations(range(8), 4))
    assert len(deals) == arrangements(positive)
    largest = np.array([score[list(deal)].sum(axis=0).max() for deal in deals])
    expected = [(largest >= one - 1e-9).mean() for one in observed]
    found = adjusted_p(values, positive, n_permutations=20_000, seed=1)
    assert found == pytest.approx(expected, abs=0.012)


def test_noise_is_called_significant_as_seldom_as_was_said() -> None:
    """200 draws of 20 columns that mean nothing, at a rate of 5 %: binomial, 99.9 % of the time at most 21."""
    rng = np.random.default_rng(11)
    positive = np.arange(16) < 8
    least = [
        adjusted_p(rng.normal(size=(16, 20)), positive, n_permutations=499, seed=seed).min()
        for seed in range(200)
    ]
    assert sum(p <= 0.05 for p in least) <= 21


def test_halves_keep_pairs_together_and_kinds_balanced() -> None:
    positive = np.array([True] * 7 + [False] * 7)
    one, two = halves(positive, seed=4)
    assert sorted([*one, *two]) == list(range(14))
    for half in (one, two):
        assert sorted(half[half >= 7] - 7) == sorted(half[half < 7])
    assert [each.tolist() for each in halves(positive, seed=4)] == [one.tolist(), two.tolist()]


def test_halves_of_unequal_kinds_have_equal_shares_of_both() -> None:
    positive = np.array([True] * 9 + [False] * 4)
    one, two = halves(positive, seed=0)
    assert (positive[one].sum(), positive[two].sum()) == (5, 4)
    assert ((~positive)[one].sum(), (~positive)[two].sum()) == (2, 2)
