"""Statistics and thresholds against the plainest possible formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.statistics import LEVELS, LayerSample, best_threshold, chosen, shifts
from scope_runtime.packs import PackLayer, PackStats
from scope_runtime.policy.model import GateKind

WIDTH, D_SAE, K = 6, 24, 4


def layer(gate: GateKind = GateKind.TOPK, seed: int = 0) -> PackLayer:
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((D_SAE, WIDTH)).astype(np.float32)
    bias = rng.standard_normal(D_SAE).astype(np.float32)
    ids = np.array([3, 7, 20])
    dec = rng.standard_normal((3, WIDTH)).astype(np.float32)
    thresholds = np.array([0.5, 1, 2], np.float32)
    return PackLayer(
        2, ids, ("",) * 3, full[ids], bias[ids], dec, gate, K, thresholds, None, full, bias
    )


def residuals(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


def gated(one: PackLayer, h: np.ndarray) -> np.ndarray:
    """One token at a time, in F64."""
    out = np.zeros((len(h), len(one.ids)))
    for t, row in enumerate(h.astype(np.float64)):
        every = one.full_enc @ row + one.full_enc_bias
        best = np.argsort(-every, kind="stable")[:K]
        for i, id in enumerate(one.ids.tolist()):
            z = every[id]
            on = {
                GateKind.TOPK: id in best,
                GateKind.RELU: z > 0,
                GateKind.THRESHOLD: z > one.thresholds[i],
                GateKind.NONE: True,
            }[one.gate]
            out[t, i] = z if on else 0.0
    return out


@pytest.mark.parametrize("gate", list(GateKind))
def test_statistics(gate: GateKind) -> None:
    sample, h = LayerSample(layer(gate)), residuals(400)
    for part in np.split(h, [1, 130]):
        sample.add(part)
    stats, wanted = sample.stats(), gated(sample.layer, h)
    assert sample.n_tokens == 400
    for i in range(3):
        fired = wanted[wanted[:, i] != 0, i]
        assert stats.firing_rate[i] == pytest.approx(len(fired) / 400)
        assert stats.mean[i] == pytest.approx(fired.mean(), rel=1e-5)
        assert stats.max[i] == pytest.approx(fired.max(), rel=1e-5)
        assert stats.quantiles[i] == pytest.approx(np.quantile(fired, LEVELS), rel=1e-5)


def test_a_feature_that_never_fires_has_zeros() -> None:
    one = layer(GateKind.THRESHOLD)
    sample = LayerSample(replace(one, thresholds=np.full(3, 1e9, np.float32)))
    sample.add(residuals(5))
    stats = sample.stats()
    for each in (stats.firing_rate, stats.mean, stats.max, stats.quantiles):
        assert not each.any()


def test_of_equals_the_first_is_chosen() -> None:
    one = layer()
    full = np.zeros_like(one.full_enc)
    flat = replace(
        one,
        full_enc=full,
        full_enc_bias=np.zeros(D_SAE, np.float32),
        enc=full[one.ids],
        enc_bias=np.zeros(3, np.float32),
    )
    assert chosen(flat, residuals(2)).tolist() == [[True, False, False]] * 2  # 0 to 3 of 24


def f1(projection: np.ndarray, on: np.ndarray, threshold: float) -> float:
    right = ((projection > threshold) & on).sum()
    return 2 * right / ((projection > threshold).sum() + on.sum())


values = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0, 1e-45, 2.0**-126])


@given(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=30))
def test_no_threshold_is_better(pairs: list[tuple[float, bool]]) -> None:
    projection = np.array([value for value, _ in pairs], np.float32)
    on = np.array([hit for _, hit in pairs])
    best = best_threshold(projection, on)
    assert best.n_chosen == on.sum()
    if not on.any():
        assert not (projection > best.value).any()
        return
    tried = [f1(projection, on, each) for each in (*projection, projection.min() - 1)]
    assert f1(projection, on, np.float32(best.value)) == pytest.approx(max(tried))
    assert best.f1 == pytest.approx(max(tried))
    right = ((projection > np.float32(best.value)) & on).sum()
    assert best.recall == pytest.approx(right / on.sum())


def test_thresholds_are_those_of_the_exact_topk() -> None:
    sample, h = LayerSample(layer()), residuals(500)
    sample.add(h)
    on = gated(sample.layer, h) != 0
    projection = h @ sample.layer.enc.T + sample.layer.enc_bias
    found = sample.thresholds()
    assert found is not None
    for i, best in enumerate(found):
        assert best.n_chosen == on[:, i].sum()
        assert f1(projection[:, i], on[:, i], best.value) == pytest.approx(best.f1, abs=0.01)
    bare = replace(layer(GateKind.RELU), full_enc=None, full_enc_bias=None)
    assert LayerSample(bare).thresholds() is None


def test_thresholds_do_not_hang_on_the_packs_gate() -> None:
    h, found = residuals(100), []
    for gate in GateKind:
        sample = LayerSample(layer(gate))
        sample.add(h)
        found.append(sample.thresholds())
    assert all(each == found[0] for each in found)


def stats(rate: float, mean: float) -> PackStats:
    row = np.full(3, mean, np.float32)
    return PackStats(row, row, np.full(3, rate, np.float32), (0.5,), row[:, None])


def test_what_moved_far_is_named() -> None:
    before = replace(layer(), stats=stats(0.10, 2.0))
    assert shifts(before, stats(0.12, 2.2), 1000) == []
    assert shifts(layer(), stats(0.9, 9.0), 1000) == []
    assert shifts(before, stats(0.9, 9.0), 10) == []  # too few tokens to say
    found = shifts(before, stats(0.30, 2.0), 1000)
    assert [each.id for each in found] == [3, 7, 20]
    assert str(found[0]) == ("layer 2, feature 3: firing rate is 0.3, the pack recorded 0.1")
    assert {each.what for each in shifts(before, stats(0.1, 0.9), 1000)} == {"mean activation"}
    assert {each.what for each in shifts(before, stats(0.0, 0.0), 1000)} == {
        "firing rate",
        "mean activation",
    }
