"""Whole layers against a plain loop over latents, in F64 where that decides nothing, and against ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scope_runtime.errors import PackError, UsageError
from scope_runtime.policy.model import GateKind
from scope_runtime.sae import FullLayer, WholeEncoder
from scope_runtime.sae import layer as layer_module
from scope_runtime.sae.gates import largest

WIDTH, D_SAE, N_TOKENS = 24, 96, 7


def make(gate: GateKind = GateKind.TOPK, k: int | None = 5, **changed: Any) -> FullLayer:
    rng = np.random.default_rng(1)
    encoder = {
        "rows": rng.standard_normal((D_SAE, WIDTH)).astype(np.float32),
        "type": "F32",
        "bias": rng.standard_normal(D_SAE).astype(np.float32),
        "thresholds": rng.random(D_SAE).astype(np.float32) if gate is GateKind.THRESHOLD else None,
        **changed,
    }
    directions = rng.standard_normal((D_SAE, WIDTH)).astype(np.float32)
    return FullLayer(
        layer=3,
        encoder=WholeEncoder(**encoder),
        gate=gate,
        k=k,
        file=Path("some.sae"),
        decoder=lambda ids: directions[ids],
    )


def some_residuals(n: int = N_TOKENS) -> Any:
    return np.random.default_rng(2).standard_normal((n, WIDTH)).astype(np.float32)


def is_active(scores: Any, latent: int, layer: FullLayer) -> bool:
    """The gates as docs/how-it-works.md has them, one latent at a time."""
    if layer.gate is GateKind.RELU:
        return bool(scores[latent] > 0)
    if layer.gate is GateKind.THRESHOLD:
        assert layer.encoder.thresholds is not None
        return bool(scores[latent] > layer.encoder.thresholds[latent])
    assert layer.k is not None
    before = sum(
        other > scores[latent] or (other == scores[latent] and place < latent)
        for place, other in enumerate(scores)
    )
    return before < layer.k


@pytest.mark.parametrize("gate", [GateKind.RELU, GateKind.THRESHOLD, GateKind.TOPK])
def test_every_active_latent_and_no_other(gate: GateKind) -> None:
    layer, h = make(gate), some_residuals()
    active = layer.encode(h)
    assert (active.n_tokens, active.d_sae) == (N_TOKENS, D_SAE)
    rows = layer.encoder.rows.astype(np.float64)
    for token in range(N_TOKENS):
        scores = rows @ h[token].astype(np.float64) + layer.encoder.bias
        expected = [each for each in range(D_SAE) if is_active(scores, each, layer)]
        ids, values = active.token(token)
        assert ids.tolist() == expected
        assert 0 < len(expected) < D_SAE
        np.testing.assert_allclose(values, scores[expected], atol=1e-5)


@given(
    hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 45),
)
def test_of_equals_the_lower_id_is_among_the_k(scores: Any, k: int) -> None:
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert largest(scores, k).tolist() == sorted(order[:k])


@pytest.mark.parametrize("gate", [GateKind.RELU, GateKind.THRESHOLD, GateKind.TOPK])
def test_chosen_latents_are_what_the_whole_layer_says(gate: GateKind) -> None:
    layer, h = make(gate), some_residuals()
    ids = [40, 3, 3, 95]
    dense = np.zeros((N_TOKENS, D_SAE), np.float32)
    active = layer.encode(h)
    for token in range(N_TOKENS):
        here, values = active.token(token)
        dense[token, here] = values
    np.testing.assert_allclose(layer.values(h, ids), dense[:, ids], atol=1e-5)
    np.testing.assert_allclose(active.of(ids), dense[:, ids])
    assert layer.values(h, []).shape == active.of([]).shape == (N_TOKENS, 0)


def test_the_strongest_come_first() -> None:
    active = make().encode(some_residuals())
    ids, values = active.token(2)
    best, most = active.strongest(2, 3)
    assert most.tolist() == sorted(values.tolist(), reverse=True)[:3]
    assert best.tolist() == [int(ids[values.tolist().index(each)]) for each in most]


def test_tokens_in_pieces_are_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, h = make(), some_residuals()
    whole = layer.encode(h)
    monkeypatch.setattr(layer_module, "SCORE_BYTES", 4 * D_SAE * 2)
    pieces = layer.encode(h)
    assert pieces.indptr.tolist() == whole.indptr.tolist()
    assert pieces.ids.tolist() == whole.ids.tolist()
    np.testing.assert_allclose(pieces.values, whole.values, atol=1e-6)


def test_no_tokens_and_one_token() -> None:
    layer, h = make(), some_residuals()
    assert layer.encode(h[:0]).n_tokens == 0
    one = layer.encode(h[0])
    assert one.n_tokens == 1
    assert one.token(0)[0].tolist() == layer.encode(h).token(0)[0].tolist()


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (
            np.zeros((2, WIDTH + 1)),
            "some.sae: residuals do not fit the SAE of layer 3; found shape (2, 25); "
            "expected (n_tokens, 24)",
        ),
        (np.full((2, WIDTH), np.nan), "a residual is not finite; found token 0"),
    ],
)
def test_residuals_that_are_refused(h: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make().encode(h)
    assert str(caught.value) == message


@pytest.mark.parametrize("id", [-1, D_SAE])
def test_a_latent_that_is_not_there(id: int) -> None:
    with pytest.raises(UsageError) as caught:
        make().values(some_residuals(), [3, id])
    assert str(caught.value) == (
        f"some.sae: the SAE of layer 3 has no such feature; found {id}; expected 0 to 95"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_found_when_it_is_used(bad: float) -> None:
    rows = some_residuals(D_SAE)
    rows[17, 4] = bad
    with pytest.raises(PackError, match=r"layer 3: the encoder is not finite.* latent 17"):
        make(rows=rows).encode(some_residuals())


@pytest.mark.parametrize(
    ("gate", "k", "message"),
    [
        (GateKind.NONE, None, "its gate says of no latent whether it is active; found none"),
        (GateKind.TOPK, None, "k of the top-k gate is not known; expected k in config.json"),
        (GateKind.TOPK, 97, "k is no count of latents; found 97; expected 1 to 96"),
    ],
)
def test_gates_that_cannot_be_carried_out(gate: GateKind, k: int | None, message: str) -> None:
    with pytest.raises(PackError) as caught:
        make(gate, k)
    assert str(caught.value) == f"some.sae: layer 3: {message}"
