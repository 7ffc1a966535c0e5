"""Every format against the library that it comes from: its own files, its own encode and decode.

The files and what the library gave for them are committed (``fixtures``, made by
``scripts/make_fixtures``); nothing of the libraries is needed here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from converters import ReadOptions, Vectors, load, open_source, write_control_vector
from converters.features import SaeLayer, SaeRows
from scope_runtime.errors import PackError
from scope_runtime.policy.model import EMBEDDING, GateKind

FIXTURES = Path(__file__).parent / "fixtures"
DICTIONARIES = [
    f"dictionary-learning/{name}-{weights}"
    for name in (
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    )
    for weights in ("random", "trained")
]
SAES = {
    **{
        f"sae-lens/{name}": (3, gate)
        for name, gate in (
            ("standard-random", "relu"),
            ("standard-trained", "relu"),
            ("gated-random", "threshold"),
            ("gated-trained", "threshold"),
            ("jumprelu-random", "threshold"),
            ("jumprelu-trained", "threshold"),
            ("topk-random", "topk"),
            ("topk-trained", "topk"),
            ("topk-rescaled", "topk"),
            ("before-6", "topk"),
            ("batchtopk", "threshold"),
            ("centred", "relu"),
        )
    },
    "sae-lens/resid-pre": (2, "relu"),
    "sae-lens/resid-pre-0": (EMBEDDING, "threshold"),
    "sae-lens/gemma-scope/layer_5/width_16k/average_l0_71": (5, "threshold"),
    "sae-lens/gemma-scope-deflated/layer_6/width_16k/average_l0_70": (6, "threshold"),
    "sae-lens/gemma-scope-embedding/embedding/width_4k/average_l0_6": (EMBEDDING, "threshold"),
    "sae-lens/gemma-scope-2/resid_post/layer_9_width_16k_l0_small": (9, "threshold"),
    "sae-lens/llama-scope/Llama3_1-8B-Base-L8R-8x": (8, "threshold"),
    "eai-sparsify/set/layers.2": (2, "topk"),
    "eai-sparsify/set/layers.5": (5, "topk"),
    **{
        name: (
            4,
            "topk" if "AutoEncoderTopK" in name else "relu" if "/Auto" in name else "threshold",
        )
        for name in DICTIONARIES
    },
}

Floats = npt.NDArray[np.float64]


def rows_of(sae: SaeLayer) -> SaeRows:
    return sae.rows(np.arange(sae.d_sae))


def activations(sae: SaeLayer, rows: SaeRows, h: Floats) -> Floats:
    """The runtime's formula, in F64; a ReLU behind a top-k, which the pack's note speaks of."""
    scores = h @ rows.enc.astype(np.float64).T + rows.enc_bias
    if sae.gate is GateKind.THRESHOLD:
        assert rows.thresholds is not None
        return np.where(scores > rows.thresholds, scores, 0.0)
    if sae.gate is GateKind.TOPK:
        assert sae.k is not None
        scores = np.where(scores >= np.sort(scores, axis=1)[:, -sae.k, None], scores, 0.0)
    return np.maximum(scores, 0.0)


@pytest.mark.parametrize("name", SAES)
def test_activations_and_directions_are_the_library_s(name: str) -> None:
    sae = load(FIXTURES / name)
    assert not isinstance(sae, Vectors)
    layer, gate = SAES[name]
    assert (sae.layer, str(sae.gate)) == (layer, gate)
    with np.load(FIXTURES / name / "expected.npz") as expected:
        h, z, added = (expected[key].astype(np.float64) for key in ("h", "z", "added"))
    assert (z > 0).any()
    assert (z == 0).any()
    rows = rows_of(sae)
    ours = activations(sae, rows, h)
    np.testing.assert_allclose(ours, z, atol=1e-5)
    np.testing.assert_allclose(ours @ rows.dec, added, atol=1e-5)


@pytest.mark.parametrize("name", [each for each in SAES if "random" in each or "set" in each])
def test_some_rows_and_the_whole_encoder_agree(name: str) -> None:
    sae = load(FIXTURES / name)
    assert not isinstance(sae, Vectors)
    enc, bias = sae.encoder()
    ids = np.array([31, 4, 17])
    some, every = sae.rows(ids), rows_of(sae)
    for key in ("enc", "enc_bias", "dec", "thresholds"):
        one, other = getattr(some, key), getattr(every, key)
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other[ids])
    assert np.array_equal(enc[ids], some.enc)
    assert np.array_equal(bias[ids], some.enc_bias)


def expected_directions(file: Path) -> dict[int, npt.NDArray[np.float32]]:
    with np.load(file) as stored:
        return {int(layer): stored[layer] for layer in sorted(stored, key=int)}


VECTORS = {
    "repeng/repeng.gguf": ("repeng/repeng.npz", "control-vector", "add"),
    "repeng/ours.gguf": ("repeng/ours.npz", "control-vector", "add"),
    "repeng/ours-by-repeng.gguf": ("repeng/ours.npz", "control-vector", "add"),
    "steering-vectors/layers.pt": ("steering-vectors/expected.npz", "steering-vectors", "add"),
    "steering-vectors/fields.pt": ("steering-vectors/expected.npz", "steering-vectors", "add"),
    "by-hand/easysteer.gguf": ("by-hand/expected.npz", "easysteer diffmean", "add"),
    "by-hand/glp.gguf": ("by-hand/expected.npz", "glp", "project"),
    "by-hand/glp-add.gguf": ("by-hand/expected.npz", "glp", "add"),
    "by-hand/cast.svec": ("by-hand/expected.npz", "svec", "add"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_directions_are_those_that_were_written(name: str) -> None:
    expected, kind, operation = VECTORS[name]
    vectors = load(FIXTURES / name)
    assert isinstance(vectors, Vectors)
    assert (vectors.kind, vectors.operation) == (kind, operation)
    directions = expected_directions(FIXTURES / expected)
    assert list(vectors.layers) == list(directions)
    for layer, direction in directions.items():
        assert vectors.layers[layer].tobytes() == direction.tobytes()


def test_repeng_and_we_write_what_the_other_reads(tmp_path: Path) -> None:
    """repeng read our file and wrote it again: the same directions and the same model hint."""
    ours = load(FIXTURES / "repeng/ours.gguf")
    theirs = load(FIXTURES / "repeng/ours-by-repeng.gguf")
    assert isinstance(ours, Vectors)
    assert isinstance(theirs, Vectors)
    assert ours.model_hint == theirs.model_hint == "qwen3"
    again = tmp_path / "again.gguf"
    write_control_vector(again, theirs.layers, model_hint=theirs.model_hint)
    assert again.read_bytes() == (FIXTURES / "repeng/ours.gguf").read_bytes()


REFUSED = {
    "eai-sparsify/set/layers.5.mlp": (
        "cfg.json: trained on an MLP, which is not the residual stream after a block; "
        "found 'layers.5.mlp'; expected blocks.N.hook_resid_post or blocks.N.hook_resid_pre"
    ),
    "eai-sparsify/transcoder": (
        "layers.7/cfg.json: a transcoder: it reads one place and writes another; found transcode"
    ),
    "steering-vectors/mlp.pt": (
        ": not for the residual stream after a block; found layer_type 'mlp'; "
        "expected 'decoder_block'"
    ),
    "by-hand/glp-bad-mode.gguf": (
        ": glp.mode is unknown; found 'rotate'; expected 'add' or 'project'"
    ),
    "by-hand/glp-bad-hook.gguf": (
        ": glp.hook_point is not one that is read; found 'ffn_out_pre_residual'; "
        "expected 'residual_stream_post_layer'"
    ),
    "by-hand/glp-bad-rank.gguf": ": more than one direction a layer; found glp.rank 2; expected 1",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_cannot_use_is_refused_in_words(name: str) -> None:
    with pytest.raises(PackError) as caught:
        load(FIXTURES / name)
    assert str(caught.value).removeprefix(str(FIXTURES / name)).lstrip("/") == REFUSED[name]


def test_a_changed_glp_file_is_refused() -> None:
    with pytest.raises(PackError, match="the directions are not those that were published"):
        load(FIXTURES / "by-hand/glp-bad-digest.gguf")


def test_an_object_of_the_library_is_not_unpickled() -> None:
    with pytest.raises(PackError, match=r"object\.pt: not a file of tensors"):
        load(FIXTURES / "steering-vectors/object.pt")


def test_a_set_gives_the_layers_that_can_be_used() -> None:
    """The MLP's SAE beside them is left aside."""
    sae_set = open_source(FIXTURES / "eai-sparsify/set")
    assert not isinstance(sae_set, Vectors)
    assert sae_set.layers == (2, 5)
    assert load(FIXTURES / "eai-sparsify/set", layer=5).kind == "sparsify"


def test_the_layer_may_be_given(tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    source = FIXTURES / "sae-lens/gemma-scope/layer_5/width_16k/average_l0_71/params.npz"
    file.write_bytes(source.read_bytes())
    with pytest.raises(PackError, match="the layer is not said"):
        load(file)
    sae = load(file, options=ReadOptions(layer=12))
    assert not isinstance(sae, Vectors)
    assert sae.layer == 12


def test_the_fixtures_are_those_that_were_made() -> None:
    known = json.loads((FIXTURES / "fixtures.json").read_text())
    for library, made in known.items():
        folder = FIXTURES / library
        there = {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }
        assert there == made["files"], library
