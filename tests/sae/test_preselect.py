"""An F16 copy that preselects changes nothing of what is active, nor of how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scope_runtime.errors import PackError
from scope_runtime.policy.model import GateKind
from scope_runtime.sae import WholeEncoder
from scope_runtime.sae import layer as layer_module
from scope_runtime.sae.preselect import Preselection
from tests.sae.test_layer import D_SAE, WIDTH, make, some_residuals


@pytest.mark.parametrize("gate", [GateKind.RELU, GateKind.THRESHOLD, GateKind.TOPK])
def test_a_preselected_layer_says_the_same(gate: GateKind) -> None:
    plain, quick = make(gate), make(gate)
    quick.preselect()
    h = some_residuals(200)
    whole = plain.encode(h)
    for token in range(200):
        one = quick.encode(h[token])
        ids, values = whole.token(token)
        assert one.ids.tolist() == ids.tolist()
        np.testing.assert_allclose(one.values, values, atol=1e-5)


def test_latents_that_f16_cannot_tell_apart_are_told_apart() -> None:
    """Rows that are one in F16: all stay candidates, and F32 says which are the largest."""
    rng = np.random.default_rng(6)
    rows = np.tile(rng.standard_normal(WIDTH).astype(np.float16), (D_SAE, 1)).astype(np.float32)
    rows *= 1 + rng.permutation(D_SAE)[:, None].astype(np.float32) * np.float32(2e-6)
    layer = make(rows=rows, bias=np.zeros(D_SAE, np.float32))
    layer.preselect()
    h = rows[0] / np.linalg.norm(rows[0])
    expected = np.argsort(-(rows.astype(np.float64) @ h))[:5]
    assert sorted(expected.tolist()) == layer.encode(h).ids.tolist()


def test_the_bound_holds_and_is_no_blank_cheque(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((4096, 256)).astype(np.float32)
    seen: list[Any] = []
    candidates = Preselection._candidates

    def watched(self: Preselection, *arguments: Any) -> Any:
        found = candidates(self, *arguments)
        seen.append(found)
        return found

    monkeypatch.setattr(Preselection, "_candidates", watched)
    encoder = WholeEncoder(rows, "F32", np.zeros(4096, np.float32))
    h = rng.standard_normal((20, 256)).astype(np.float32)
    Preselection(encoder).active(h, GateKind.TOPK, 50)
    for token, places in enumerate(seen):
        exact = rows.astype(np.float64) @ h[token]
        assert set(np.argsort(-exact)[:50].tolist()) <= set(places.tolist())
        assert len(places) <= 60


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_rows_that_f16_does_not_hold(bad: float) -> None:
    rows = some_residuals(D_SAE)
    rows[9, 9] = bad
    with pytest.raises(PackError) as caught:
        make(rows=rows).preselect()
    assert str(caught.value) == "some.sae: the encoder is not finite, or reaches beyond F16"


def test_files_in_f16_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "Preselection", None)
    layer = make(rows=some_residuals(D_SAE).astype(np.float16), type="F16")
    layer.preselect()
    assert layer.encode(some_residuals()).n_tokens == 7
