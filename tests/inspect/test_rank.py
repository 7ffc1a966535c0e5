"""From active latents to a ranking: pooling, choosing on one half and judging on the other, grouping."""

from __future__ import annotations

import numpy as np
import pytest

from scope_runtime.errors import UsageError
from scope_runtime.inspect.ahead import Ahead
from scope_runtime.inspect.groups import correlation, cosines, grouped
from scope_runtime.inspect.rank import Criteria, rank
from scope_runtime.inspect.sample import FEWEST_TEXTS, Pool, Pooled, Sample, sample
from scope_runtime.inspect.statistics import auroc, effect_size, halves
from scope_runtime.sae import Active

D_SAE = 12


def cut_out(active: dict[int, Active], first: int, after: int) -> dict[int, Active]:
    """Some tokens of a text."""
    out = {}
    for layer, whole in active.items():
        low, high = whole.indptr[[first, after]]
        indptr = whole.indptr[first : after + 1] - low
        out[layer] = Active(indptr, whole.ids[low:high], whole.values[low:high], D_SAE)
    return out


def random_sample(seed: int, n_texts: int = 8) -> tuple[Sample, list[dict[int, np.ndarray]]]:
    """Texts of 1 to 6 tokens over two layers, and the same activations dense, per text and layer."""
    rng = np.random.default_rng(seed)
    texts, dense = [], []
    for _ in range(n_texts):
        n = int(rng.integers(1, 7))
        z = {
            layer: np.where(rng.random((n, D_SAE)) < 0.4, rng.normal(1, 1, (n, D_SAE)), 0).astype(
                np.float32
            )
            for layer in (1, 4)
        }
        active = {}
        for layer, values in z.items():
            token, id = np.nonzero(values)
            indptr = np.concatenate([[0], np.cumsum((values != 0).sum(axis=1))])
            active[layer] = Active(
                indptr.astype(np.int64), id.astype(np.int32), values[token, id], D_SAE
            )
        cut = int(rng.integers(0, n))  # a text comes in one part or in two
        texts.append(
            [
                (range(*part), cut_out(active, *part))
                for part in ((0, cut), (cut, n))
                if part[0] < part[1]
            ]
        )
        dense.append(z)
    return sample(texts, [i % 2 == 0 for i in range(n_texts)]), dense


@pytest.mark.parametrize("at", Pool)
@pytest.mark.parametrize("seed", range(4))
def test_pooling_is_what_it_says(at: Pool, seed: int) -> None:
    read, dense = random_sample(seed)
    found = read.pooled(at)
    assert found.n_latents == 2 * D_SAE
    expected = {}
    for layer in (1, 4):
        for id in range(D_SAE):
            column = []
            for text in dense:
                z = np.maximum(text[layer][:, id], 0)
                counted = z[1:] if len(z) > 1 and at is not Pool.LAST else z
                column.append(
                    {"max": counted.max(), "mean": counted.mean(), "last": z[-1]}[str(at)]
                )
            if sum(value > 0 for value in column) >= FEWEST_TEXTS:
                expected[layer, id] = column
    assert list(zip(found.layers.tolist(), found.ids.tolist(), strict=True)) == list(expected)
    np.testing.assert_allclose(found.values.T, list(expected.values()), rtol=1e-6)


def test_what_lies_before_the_first_token_that_counts_does_not() -> None:
    rows = Active(
        np.array([0, 1, 2, 3]),
        np.array([5, 5, 5], np.int32),
        np.array([9, 2, 4], np.float32),
        D_SAE,
    )
    part = (range(3), {1: rows})
    read = sample([[part]] * 3, [True, False, True], begins=[0, 1, 2])
    assert read.pooled(Pool.MAX).values[:, 0].tolist() == [9, 4, 4]
    assert read.pooled(Pool.MEAN).values[:, 0].tolist() == [5, 3, 4]
    assert read.pooled(Pool.LAST).values[:, 0].tolist() == [4, 4, 4]


def test_activations_of_chosen_features_over_all_tokens() -> None:
    read, dense = random_sample(7)
    found = read.activations([(4, 3), (1, 0), (4, 1)])
    for i, (layer, id) in enumerate([(4, 3), (1, 0), (4, 1)]):
        expected = np.concatenate([np.maximum(text[layer][:, id], 0) for text in dense])
        assert found[:, i].tolist() == expected.tolist()


def test_one_kind_alone_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        sample([[([1], {0: Active(np.array([0, 0]), *_nothing(), 3)})]], [True])
    assert str(error.value) == "texts of two kinds are needed; found 1 positive, 0 negative"


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.int32), np.empty(0, np.float32)


def noise(seed: int, n_texts: int = 40, n_features: int = 300) -> Pooled:
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.normal(size=(n_texts, n_features)), 0).astype(np.float32)
    ids = np.arange(n_features)
    return Pooled(np.full(n_features, 2), ids, values, n_features)


POSITIVE = np.arange(40) < 20


def test_a_planted_feature_comes_first_and_is_significant() -> None:
    pooled = noise(1)
    pooled.values[:20, 77] += 2.5
    found = rank(pooled, POSITIVE)
    assert (found.features[0].layer, found.features[0].id) == (2, 77)
    assert [each.id for each in found.significant] == [77]
    assert found.features[0].chosen_by == 2
    assert found.features[0].fires[0] == 1


def test_figures_come_from_texts_that_did_not_choose() -> None:
    """Chosen out of 300 columns of noise, the best separate their own half well and the other not at all."""
    found = [rank(noise(seed), POSITIVE, Criteria(candidates=3)) for seed in range(40)]
    held_out = [each.auroc for ranking in found for each in ranking.features]
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.03)
    assert sum(bool(ranking.significant) for ranking in found) <= 2


def test_with_few_texts_nothing_is_held_out_and_nothing_is_significant() -> None:
    pooled = noise(2, n_texts=6)
    pooled.values[:3, 5] += 10
    found = rank(pooled, np.arange(6) < 3)
    assert not found.held_out
    assert found.features[0].id == 5
    assert found.features[0].p is None
    assert found.significant == ()


def ahead_of(seed: int, n_features: int, width: int = 16) -> tuple[Ahead, np.ndarray]:
    """Positive texts go on with one word, the others with another; and random directions."""
    rng = np.random.default_rng(seed)
    words = np.where(POSITIVE[:, None], rng.normal(size=width), rng.normal(size=width))
    words = (words + 0.1 * rng.normal(size=(40, width))).astype(np.float32)
    residuals = (words + rng.normal(size=(40, width))).astype(np.float32)
    directions = rng.normal(size=(n_features, width)).astype(np.float32)
    return Ahead(words, residuals, lambda layer, ids: directions[ids] * (layer == 2)), directions


def test_a_push_is_what_numpy_makes_of_it_on_the_other_half() -> None:
    pooled = noise(3)
    ahead, directions = ahead_of(3, 300)
    found = rank(pooled, POSITIVE, Criteria(candidates=30, seed=5), ahead)
    split = halves(POSITIVE, seed=5)
    raw: dict[int, list[float]] = {}
    wholes = []

    def apart(values: np.ndarray, texts: np.ndarray) -> np.ndarray:
        kinds = POSITIVE[texts]
        return values[texts][kinds].mean(axis=0) - values[texts][~kinds].mean(axis=0)

    for choosing, judging in (split, split[::-1]):
        towards = apart(ahead.words.astype(np.float64), choosing)
        wholes.append(apart(ahead.residuals.astype(np.float64), judging) @ towards)
        slope = directions.astype(np.float64) @ towards
        chose = slope * apart(pooled.values.astype(np.float64), choosing)
        chose[auroc(pooled.values[choosing], POSITIVE[choosing]) <= 0.5] = 0
        area = auroc(pooled.values[choosing], POSITIVE[choosing])
        effect = effect_size(pooled.values[choosing], POSITIVE[choosing])
        candidates = {*np.lexsort((-effect, -area))[:30].tolist()}
        candidates |= {i for i in np.argsort(-chose)[:30].tolist() if chose[i] > 0}
        for i in candidates:
            push = slope[i] * apart(pooled.values[:, [i]].astype(np.float64), judging)[0]
            raw.setdefault(i, []).append(push)
    assert {each.id for each in found.features} == set(raw)
    for each in found.features:
        expected = np.mean(raw[each.id]) / np.mean(wholes)
        assert each.push == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_of_features_that_tell_as_much_the_one_that_acts_comes_first() -> None:
    pooled = noise(4)
    pooled.values[:20, 50] += 3
    pooled.values[:, 60] = pooled.values[:, 50]
    ahead, directions = ahead_of(4, 300)
    towards = ahead.towards(np.arange(40), POSITIVE)
    directions[60] = towards / np.linalg.norm(towards)
    directions[50] = 0
    found = rank(pooled, POSITIVE, ahead=ahead)
    assert found.features[0].id == 60
    by_id = {each.id: each for each in found.features}
    assert by_id[50].auroc == by_id[60].auroc
    assert by_id[50].push == 0
    # Against those words it acts no less, and does not come first for it.
    directions[60] *= -1
    assert rank(pooled, POSITIVE, ahead=ahead).features[0].id == 50


def test_pushes_make_nothing_significant_by_themselves() -> None:
    """Random activations and directions, but what comes next truly differs: 99 of 100 searches call nothing so."""
    found = [
        rank(
            noise(seed),
            POSITIVE,
            Criteria(candidates=5, n_permutations=999),
            ahead_of(seed, 300)[0],
        )
        for seed in range(40)
    ]
    assert sum(bool(ranking.significant) for ranking in found) <= 2


def test_no_feature_at_all() -> None:
    empty = Pooled(np.empty(0, int), np.empty(0, int), np.empty((40, 0), np.float32), 300)
    assert rank(empty, POSITIVE).features == ()


def test_features_that_fire_together_or_point_the_same_way_are_one_group() -> None:
    rng = np.random.default_rng(5)
    a, b = np.maximum(rng.normal(size=(2, 400)), 0)
    activations = np.column_stack([a, b, a + 0.1 * rng.random(400), np.zeros(400)])
    directions = rng.normal(size=(4, 64))
    directions[3] = directions[1] + 0.3 * rng.normal(size=64)
    co_firing = correlation(activations.astype(np.float32))
    assert co_firing[:3, :3] == pytest.approx(np.corrcoef(activations[:, :3].T), abs=1e-6)
    assert co_firing[3].tolist() == [0, 0, 0, 0]
    groups = grouped(co_firing, cosines(directions.astype(np.float32)))
    assert groups == ((0, 2), (1, 3))
