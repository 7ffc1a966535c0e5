"""The index against its definition and against theory; the test's p-values against every arrangement there is."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_runtime.drift.statistics import p_values, permutations_for, stability
from tests.support.drift_traffic import TIMES, bound

Values = list[float]


def counted(a: Values, b: Values, n_bins: int) -> list[tuple[int, int]]:
    """Requests of both samples per bin, one value at a time, from the definition."""
    ordered = sorted(a)
    edges = [ordered[max(math.ceil(i * len(a) / n_bins - 1e-9) - 1, 0)] for i in range(1, n_bins)]

    def bin_of(value: float) -> int:
        return sum(value > edge for edge in edges) + sum(
            value >= edge for edge in edges if edges.count(edge) > 1
        )

    cells: dict[int, list[int]] = {}
    for which, values in enumerate((a, b)):
        for value in values:
            cells.setdefault(bin_of(value), [0, 0])[which] += 1
    return [(one, other) for _, (one, other) in sorted(cells.items())]


def index(cells: list[tuple[int, int]]) -> float:
    n, m, k = sum(a for a, _ in cells), sum(b for _, b in cells), len(cells)
    shares = [((a + 0.5) / (n + k / 2), (b + 0.5) / (m + k / 2)) for a, b in cells]
    return sum((q - p) * math.log(q / p) for p, q in shares)


def score(a: Values, b: Values, n_bins: int) -> float:
    every, cells = a + b, counted(a, b, n_bins)
    mean = sum(every) / len(every)
    variance = sum((v - mean) ** 2 for v in every) / (len(every) - 1)
    if not variance:
        return 0.0
    scale, freedom = len(a) * len(b) / len(every), max(len(cells) - 1, 1)
    small = 2 / (9 * freedom)
    by_index = ((index(cells) * scale / freedom) ** (1 / 3) - (1 - small)) / math.sqrt(small)
    change = abs(sum(b) / len(b) - sum(a) / len(a))
    return max(by_index, change * math.sqrt(scale / variance))


VALUES = st.lists(
    st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, -1.5]) | st.floats(-5, 5, width=32),
    min_size=1,
    max_size=40,
)


@given(a=VALUES, b=VALUES, n_bins=st.integers(2, 12))
def test_the_index_is_its_definition(a: Values, b: Values, n_bins: int) -> None:
    found = stability(np.array(a), np.array(b), n_bins)
    cells = counted(a, b, n_bins)
    assert list(zip(found.baseline.tolist(), found.window.tolist(), strict=True)) == cells
    assert found.psi == pytest.approx(index(cells), abs=1e-12)
    assert len(found.edges) == len(cells) - 1
    assert (np.diff(found.edges) > 0).all()


def test_the_index_of_two_normals_is_what_theory_says() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=200_000), rng.normal(0.5, 1.0, size=200_000)
    normal = NormalDist()
    edges = [-math.inf, *(normal.inv_cdf(i / 10) for i in range(1, 10)), math.inf]
    shares = [normal.cdf(hi - 0.5) - normal.cdf(lo - 0.5) for lo, hi in itertools.pairwise(edges)]
    theory = sum((q - 0.1) * math.log(q / 0.1) for q in shares)
    assert stability(a, b).psi == pytest.approx(theory, rel=0.02)
    assert stability(a, rng.normal(size=200_000)).psi < 0.001


def test_a_feature_that_is_mostly_off_has_a_bin_for_it() -> None:
    a = np.array([0.0] * 95 + [1.0] * 5)
    found = stability(a, np.array([0.0] * 50 + [2.0] * 50))
    assert found.baseline.tolist() == [95, 5]
    # And one that is mostly at its most: what lies below that is seen to grow.
    found = stability(1.0 - a, np.array([1.0] * 50 + [0.0] * 50))
    assert found.baseline.tolist() == [5, 95]
    assert found.window.tolist() == [50, 50]


@pytest.mark.parametrize("seed", range(4))
def test_p_values_against_every_arrangement(seed: int) -> None:
    """Of two measurements of 4 and 5 requests: all 126 ways to choose the baseline, by the definition."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=9), np.maximum(rng.normal(size=9), 0).round(1)
    one[6:] += 1.5 * (seed % 2)
    rows = [one.tolist(), two.tolist()]

    def scores(chosen: tuple[int, ...]) -> list[float]:
        rest = [i for i in range(9) if i not in chosen]
        return [score([r[i] for i in chosen], [r[i] for i in rest], 3) for r in rows]

    observed = scores((0, 1, 2, 3))
    largest = [max(scores(chosen)) for chosen in itertools.combinations(range(9), 4)]
    exact = [sum(x >= mine - 1e-9 for x in largest) / len(largest) for mine in observed]
    n = 20_000
    found = p_values(
        [(r[:4], r[4:]) for r in (one, two)], alpha=1, seed=1, n_bins=3, n_permutations=n
    )
    for p, q in zip(found, exact, strict=True):
        assert abs(p - q) <= 4 * math.sqrt(q * (1 - q) / n) + 2 / n


def test_false_alarms_are_as_rare_as_said() -> None:
    """500 times nothing changed, three measurements that hang together, one that 30 % of requests lack."""
    n, alpha = 500 * TIMES, 0.02
    alarms = 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        level = rng.normal(size=80)
        seldom = np.where(rng.random(80) < 0.1, np.exp(level), 0.0)
        lacking = np.where(rng.random(80) < 0.3, np.nan, level + rng.normal(size=80))
        pairs = [(v[:50], v[50:]) for v in (level, seldom, lacking)]
        alarms += bool(p_values(pairs, alpha=alpha, seed=seed, n_permutations=499).min() <= alpha)
    assert alarms <= bound(n, alpha)
    # Nor is it so only because it never says anything: the test uses up the rate that it was given.
    assert alarms >= n * alpha / 2


def test_stopping_early_changes_no_decision() -> None:
    alpha, decided = 0.05, set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pairs = [(rng.normal(size=40), rng.normal(0.1 * (seed % 10), 1, size=40)) for _ in range(2)]
        early = p_values(pairs, alpha=alpha, seed=seed, n_permutations=399)
        full = p_values(pairs, alpha=1, seed=seed, n_permutations=399)
        assert ((early <= alpha) == (full <= alpha)).all()
        decided |= set((full <= alpha).tolist())
    assert decided == {True, False}


def test_there_are_permutations_enough_for_the_level() -> None:
    for alpha in (0.5, 0.01, 0.002, 0.0001):
        assert 2 / (permutations_for(alpha) + 1) <= alpha


def test_what_never_changes_says_nothing() -> None:
    same = np.full(50, 0.1)
    assert p_values([(same, same + 1e-17)], alpha=0.05, seed=1).tolist() == [1.0]
    assert p_values([], alpha=0.05, seed=1).tolist() == []
