"""The test of differences: against every arrangement written out, and its promise where nothing differs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scope_runtime.inspect.differences import effects, least_p, permuted


def effect_of(a: np.ndarray, b: np.ndarray, common: float, *, paired: bool) -> float:  # type: ignore[type-arg]
    """One feature's, by its definition."""
    if paired:
        d = b - a
        return float(d.mean() / (d.std(ddof=1) + common))
    pooled = math.sqrt((a.var() * len(a) + b.var() * len(b)) / (len(a) + len(b) - 2))
    return float((b.mean() - a.mean()) / (pooled + common))


def test_effects_are_what_they_are_defined_as() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.gamma(1.0, 3.0, (5, 7)), rng.gamma(2.0, 3.0, (6, 7))
    common = float(np.median(np.concatenate([a, b]).std(axis=0)))
    np.testing.assert_allclose(
        effects(a, b, paired=False),
        [effect_of(a[:, i], b[:, i], common, paired=False) for i in range(7)],
    )
    common = float(np.median(np.sqrt(((b[:5] - a) ** 2).mean(axis=0))))
    np.testing.assert_allclose(
        effects(a, b[:5], paired=True),
        [effect_of(a[:, i], b[:5, i], common, paired=True) for i in range(7)],
    )


def test_a_feature_that_hardly_does_anything_does_not_lead() -> None:
    a = np.zeros((8, 3))
    b = np.zeros((8, 3))
    b[:, 0] = 1e-6 + 1e-9 * np.arange(8)  # without fail, and nearly nothing
    b[:, 1] = 5 + np.arange(8)
    b[:, 2] = np.arange(8) % 3
    for paired in (True, False):
        found = effects(a, b, paired=paired)
        assert abs(found).argmax() == 1
        assert found[0] < 1e-4


@pytest.mark.parametrize("paired", [True, False])
def test_p_values_are_counts_over_every_arrangement(paired: bool) -> None:
    rng = np.random.default_rng(2)
    n = 6 if paired else 4
    a, b = rng.normal(size=(n, 4)), rng.normal((9, 1, 0, 0), size=(n, 4))
    observed = np.abs(effects(a, b, paired=paired))
    largest = []
    if paired:
        for signs in itertools.product((1, -1), repeat=n):
            d = (b - a) * np.array(signs)[:, None]
            largest.append(np.abs(effects(np.zeros_like(d), d, paired=True)).max())
    else:
        every = np.concatenate([a, b])
        for of_b in itertools.combinations(range(2 * n), n):
            mask = np.isin(np.arange(2 * n), of_b)
            largest.append(np.abs(effects(every[~mask], every[mask], paired=False)).max())
    expected = (np.array(largest)[:, None] >= observed - 1e-9).mean(axis=0)
    found = permuted(a, b, paired=paired, seed=0)
    assert (found.exact, found.n_arrangements) == (True, len(largest))
    np.testing.assert_allclose(found.p, expected)
    assert found.p[0] == least_p(n, n, paired=paired)


@pytest.mark.parametrize("paired", [True, False])
def test_of_many_arrangements_some_are_drawn(paired: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(20, 3)), rng.normal((2, 0, 0), size=(20, 3))
    found = permuted(a, b, paired=paired, seed=0)
    assert (found.exact, found.n_arrangements) == (False, 4_999)
    assert found.p[0] == 1 / 5_000
    assert found.p[1:].min() > 0.05
    assert np.array_equal(found.p, permuted(a, b, paired=paired, seed=0).p)


@pytest.mark.parametrize("paired", [True, False])
def test_while_nothing_differs_hardly_ever_anything_is_named(paired: bool) -> None:
    """Sparse, skewed and correlated features: 5 % of 300 draws may name any, 15, and 13 more by chance."""
    rng = np.random.default_rng(4)
    named = 0
    for _ in range(300):
        shared = rng.gamma(1.0, 1.0, (12, 1))
        values = rng.gamma(0.5, 4.0, (12, 40)) * (rng.random((12, 40)) < 0.3) + shared
        named += bool((permuted(values[:6], values[6:], paired=paired, seed=0).p <= 0.05).any())
    assert named <= 28


def test_the_least_p_value() -> None:
    assert least_p(1, 1, paired=True) == 1.0
    assert least_p(6, 6, paired=True) == 2 / 64
    assert least_p(4, 4, paired=False) == 2 / 70
    assert least_p(3, 5, paired=False) == 1 / 56
    assert least_p(1, 9, paired=False) == 1.0


@pytest.mark.parametrize("paired", [True, False])
def test_the_same_numbers_differ_in_nothing(paired: bool) -> None:
    same = np.full((6, 2), 3.0)
    assert effects(same, same, paired=paired).tolist() == [0.0, 0.0]
    assert permuted(same, same, paired=paired, seed=0).p.tolist() == [1.0, 1.0]
