"""Files proved on a model: sound ones pass, and each way to be wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters import verify as verify_module
from converters.features import FeatureRequest
from converters.vector import VectorOptions, vector_of_features
from converters.verify import Verification, verify
from scope_runtime.errors import PackError
from scope_runtime.llama import library
from scope_runtime.llama.context import Context
from scope_runtime.packs import PackLayer, read_pack, write_pack
from scope_runtime.policy.model import EMBEDDING, GateKind
from scope_runtime.vectors import read_control_vector, write_control_vector
from tests.conftest import Tiny

library.load()


def proved(path: Path, tiny: Tiny) -> Verification:
    return verify(path, tiny.model, n_threads=1)


@pytest.fixture
def made(tiny: Tiny, tmp_path: Path) -> Path:
    """Of a pack's feature of layer 2, spread over 2 and 4."""
    pack = tiny.policy.with_name("pack.gguf")
    path = tmp_path / "v.gguf"
    options = VectorOptions(alpha=3)
    vector_of_features(pack, [FeatureRequest(2, 5)], path, layers=[2, 4], options=options)
    return path


def test_a_sound_vector(tiny: Tiny, made: Path) -> None:
    found = proved(made, tiny)
    assert found.ok, found
    assert [check.what for check in found.checks] == [
        "layers as recorded",
        "direction.2 acts on the output of block 2",
        "direction.4 acts on the output of block 4",
    ]
    assert "equal logits bit for bit" in found.checks[1].words


def test_a_vector_of_another_tool(tiny: Tiny) -> None:
    found = proved(tiny.policy.with_name("vector.gguf"), tiny)
    assert found.ok, found
    assert "no recipe" in found.checks[0].words


@pytest.mark.parametrize("by", [-1, 1])
def test_a_shifted_file_fails(by: int, tiny: Tiny, made: Path, tmp_path: Path) -> None:
    vector = read_control_vector(made)
    rows = {layer + by: row for layer, row in vector.layers.items() if layer + by < 5}
    metadata = {key: value for key, value in vector.metadata if key.startswith("scope.")}
    path = tmp_path / "shifted.gguf"
    write_control_vector(path, rows, model_hint="qwen3", metadata=metadata)
    found = proved(path, tiny)
    assert not found.ok
    assert not found.checks[0].ok
    assert "made for 2, 4" in found.checks[0].words
    if by == -1:
        assert found.checks[0].words.startswith("shifted by -1")


def test_a_numbering_that_is_not_llama_cpps_fails(
    tiny: Tiny, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if direction.N acted a block late, the way some tools number them."""
    set_vectors = Context.set_control_vectors

    def a_block_late(self: Context, vectors: np.ndarray | None) -> None:
        set_vectors(self, None if vectors is None else np.roll(vectors, 1, axis=0))

    monkeypatch.setattr(Context, "set_control_vectors", a_block_late)
    found = proved(made, tiny)
    assert [check.ok for check in found.checks] == [True, False, False]
    assert "different logits" in found.checks[1].words


def test_a_direction_that_does_nothing_fails(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    rows = {1: np.zeros(64, np.float32), 2: np.full(64, 1e-30, np.float32)}
    write_control_vector(path, rows, model_hint="qwen3")
    found = proved(path, tiny)
    assert [check.ok for check in found.checks] == [True, False, False]
    assert "is zero" in found.checks[1].words
    assert "too short" in found.checks[2].words


@pytest.mark.parametrize(
    ("layer", "width", "hint", "message"),
    [
        (5, 64, "qwen3", r"direction\.5 has no block to act on; expected 1 to 4"),
        (1, 32, "qwen3", "the width differs; found 64; expected 32"),
        (1, 64, "llama", "the architecture differs; found qwen3; expected llama"),
    ],
)
def test_a_vector_for_another_model_is_refused(
    layer: int, width: int, hint: str, message: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "v.gguf"
    write_control_vector(path, {layer: np.ones(width, np.float32)}, model_hint=hint)
    with pytest.raises(PackError, match=message):
        proved(path, tiny)


def gates(tiny: Tiny, path: Path) -> Path:
    """A pack with every kind of gate, at the first, a middle and the last hook point."""
    whole = read_pack(tiny.policy.with_name("pack.gguf"))
    kinds = {EMBEDDING: GateKind.NONE, 0: GateKind.RELU, 2: GateKind.TOPK, 4: GateKind.THRESHOLD}
    layers = [
        replace(
            whole.layer(number),
            gate=gate,
            thresholds=np.full(64, 0.3, np.float32) if gate is GateKind.THRESHOLD else None,
        )
        for number, gate in kinds.items()
    ]
    write_pack(path, whole.model, layers)
    return path


def test_a_sound_pack(tiny: Tiny, tmp_path: Path) -> None:
    found = proved(gates(tiny, tmp_path / "p.gguf"), tiny)
    assert found.ok, found
    assert [check.what for check in found.checks] == [
        "layer embedding: gate none of 64 features",
        "layer 0: gate relu of 64 features",
        "layer 2: gate topk of 64 features",
        "layer 4: gate threshold of 64 features",
    ]


def test_a_hook_that_measures_elsewhere_fails(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob: Callable[[Context, PackLayer], bytes] = verify_module._measuring_blob

    def a_block_off(context: Context, layer: PackLayer) -> bytes:
        return blob(context, replace(layer, layer=(layer.layer + 2) % 5 - 1))

    monkeypatch.setattr(verify_module, "_measuring_blob", a_block_off)
    found = proved(gates(tiny, tmp_path / "p.gguf"), tiny)
    assert not any(check.ok for check in found.checks)
    assert "the hook measures other activations" in found.checks[0].words


def test_a_pack_without_a_direction_fails(tiny: Tiny, tmp_path: Path) -> None:
    whole = read_pack(tiny.policy.with_name("pack.gguf"))
    layer = whole.layer(1)
    dec = layer.dec.copy()
    dec[3] = 0
    write_pack(tmp_path / "p.gguf", whole.model, [replace(layer, dec=dec)])
    [check] = proved(tmp_path / "p.gguf", tiny).checks
    assert not check.ok
    assert check.words == "the direction of feature 3 is zero"
