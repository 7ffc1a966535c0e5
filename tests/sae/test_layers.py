"""Sets of whole layers: from packs, and from every format that is published, against its own library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converters import FeatureRequest, convert_pack
from scope_runtime.errors import PackError, ScopeError, UsageError
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.sae import SaeLayers
from scope_runtime.sae.layers import parse_spec
from tests.conftest import ROOT
from tests.converters.test_originals import FIXTURES, SAES

EXAMPLE = ROOT / "examples" / "tiny-qwen3" / "sae"


@pytest.mark.parametrize("name", SAES)
def test_activations_are_those_of_the_library_that_made_the_file(name: str) -> None:
    layer, gate = SAES[name]
    saes = SaeLayers.open(FIXTURES / name)
    assert saes.layers == (layer,)
    found = saes.layer(layer)
    assert str(found.gate) == gate
    with np.load(FIXTURES / name / "expected.npz") as expected:
        h, z, added = expected["h"], expected["z"], expected["added"]
    active = found.encode(h)
    ours = active.of(range(found.d_sae))
    # Behind the top-k of these libraries stands a ReLU, as the layer's notes say.
    np.testing.assert_allclose(np.maximum(ours, 0), z, atol=1e-5)
    # Token by token the same latents; which is the k-th or just above its threshold is a matter of rounding for none.
    assert np.count_nonzero((ours > 0) != (z > 0)) == 0
    np.testing.assert_allclose(
        np.maximum(ours, 0) @ found.decoder(range(found.d_sae)), added, atol=1e-4
    )


def test_the_example_s_layer_is_what_torch_makes_of_it() -> None:
    weights = torch.load(EXAMPLE / "layer3.sae.pt", weights_only=True)
    h = 4 * torch.randn(200, 256, generator=torch.Generator().manual_seed(3))
    scores = h @ weights["W_enc"].float().T + weights["b_enc"].float()
    top = scores.topk(17)
    layer = SaeLayers.open(EXAMPLE).layer(3)
    active = layer.encode(h.numpy())
    assert np.diff(active.indptr).tolist() == [16] * 200
    range_ = float(scores.max() - scores.min())
    n_ties = 0
    for token in range(200):
        ids, values = active.token(token)
        np.testing.assert_allclose(values, scores[token][ids], atol=1e-4 * range_)
        expected = sorted(top.indices[token][:16].tolist())
        if ids.tolist() != expected:
            gap = float(top.values[token][15] - top.values[token][16])
            assert gap <= 1e-6 * range_
            n_ties += 1
    assert n_ties <= 1


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    features = [FeatureRequest(3, 7, "seven"), FeatureRequest(3, 2)]
    out = tmp_path / "exact.gguf"
    convert_pack(EXAMPLE, features, out, exact_gate_layers=[3], architecture="qwen3")
    return out


def test_a_pack_with_its_whole_encoder_is_the_set_that_it_was_made_of(pack: Path) -> None:
    one, other = SaeLayers.open(pack), SaeLayers.open(EXAMPLE)
    assert (one.layers, one.architecture, one.n_layer) == ((3,), "qwen3", 4)
    h = np.random.default_rng(5).standard_normal((9, 256)).astype(np.float32)
    ours, theirs = one.layer(3).encode(h), other.layer(3).encode(h)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert np.array_equal(ours.values, theirs.values)
    assert one.layer(3).labels == {7: "seven"}
    assert np.array_equal(one.layer(3).decoder([7, 2]), other.layer(3).decoder([7, 2]))
    with pytest.raises(PackError, match="feature 5 of layer 3 is not in the pack"):
        one.layer(3).decoder([5])


def test_a_pack_without_whole_encoders_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "some.gguf"
    convert_pack(EXAMPLE, [FeatureRequest(3, 7)], out, architecture="qwen3")
    for spec in (str(out), f"{out}:3"):
        with pytest.raises(PackError) as caught:
            SaeLayers.open(spec)
        assert str(caught.value) == (
            f"{out}: the pack has some features of layer 3, not its whole encoder. "
            "Give the published SAE, or convert with --exact-gate"
        )


@pytest.mark.parametrize(
    ("spec", "path", "layers"),
    [
        ("dir", "dir", None),
        ("dir:3", "dir", (3,)),
        ("a:b/dir:5,0-2,embedding", "a:b/dir", (EMBEDDING, 0, 1, 2, 5)),
        ("hf:owner/name", "hf:owner/name", None),
        ("hf:owner/name@v1:7", "hf:owner/name@v1", (7,)),
        ("hf:7", "hf:7", None),
        ("dir:three", "dir:three", None),
    ],
)
def test_what_a_person_writes(spec: str, path: str, layers: tuple[int, ...] | None) -> None:
    assert parse_spec(spec) == (path, layers)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("{EXAMPLE}:5-3", UsageError, "the layers run backwards; found '5-3'; expected FIRST-LAST"),
        ("{EXAMPLE}:1", PackError, "{EXAMPLE}: layer 1 is not in the set; expected one of 2, 3"),
        ("{EXAMPLE}/nothing", PackError, "{EXAMPLE}/nothing: no such file or folder"),
        (
            "{FIXTURES}/repeng/ours.gguf",
            UsageError,
            "{FIXTURES}/repeng/ours.gguf: steering vectors have no features; found control-vector; "
            "expected an SAE",
        ),
    ],
)
def test_sets_that_are_refused(spec: str, error: type[ScopeError], message: str) -> None:
    places = {"EXAMPLE": EXAMPLE, "FIXTURES": FIXTURES}
    with pytest.raises(error) as caught:
        SaeLayers.open(spec.format(**places))
    assert str(caught.value) == message.format(**places)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 128), "the width differs; found 128; expected 256"),
        ((5, 256), "the number of layers differs; found 5; expected 4"),
    ],
)
def test_a_model_that_the_set_is_not_of(shape: tuple[int, int], message: str) -> None:
    saes = SaeLayers.open(EXAMPLE)
    model: Any = SimpleNamespace(path="m.gguf", architecture="qwen3", n_layer=4, n_embd=256)
    saes.check_fits(model)
    model.n_layer, model.n_embd = shape
    with pytest.raises(PackError) as caught:
        saes.check_fits(model)
    assert str(caught.value) == (
        f"m.gguf: the SAEs are not of this model: {message}, as in {EXAMPLE}"
    )


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(FIXTURES / "eai-sparsify" / "set" / "layers.2", folder / "layers.2")
    weights = folder / "layers.2" / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(PackError, match=r"sae\.safetensors: .*cut short"):
        SaeLayers.open(folder).layer(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_that_need_no_folding_stay_in_their_file(tmp_path: Path, dtype: Any) -> None:
    source = FIXTURES / "eai-sparsify" / "set" / "layers.2"
    folder = tmp_path / "layers.2"
    shutil.copytree(source, folder)
    from safetensors.torch import load_file

    tensors = {name: each.to(dtype) for name, each in load_file(source / "sae.safetensors").items()}
    save_file(tensors, folder / "sae.safetensors")
    layer = SaeLayers.open(folder).layer(2)
    assert isinstance(layer.encoder.rows, np.memmap)
    assert layer.encoder.rows.itemsize == tensors["encoder.weight"].element_size()
    h = np.random.default_rng(8).standard_normal((40, layer.width)).astype(np.float32)
    wide = {name: each.double().numpy() for name, each in tensors.items()}
    scores = (h - wide["b_dec"]) @ wide["encoder.weight"].T + wide["encoder.bias"]
    active = layer.encode(h)
    for token in range(40):
        ids, values = active.token(token)
        assert set(ids.tolist()) == set(np.argsort(-scores[token])[: layer.k].tolist())
        np.testing.assert_allclose(values, scores[token][ids], atol=1e-5)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A set whose rows stay in their file."""
    source = FIXTURES / "eai-sparsify" / "set" / "layers.2"
    return Path(shutil.copytree(source, tmp_path / "layers.2"))


@pytest.mark.parametrize("how", ["cut", "written"])
def test_a_file_that_is_written_to_while_it_is_mapped_is_refused(copied: Path, how: str) -> None:
    """To read on where a mapped file ends would end the process."""
    weights = copied / "sae.safetensors"
    layer = SaeLayers.open(copied).layer(2)
    h = np.ones((2, layer.width), np.float32)
    assert layer.encode(h).n_tokens == 2
    before = weights.stat()
    if how == "cut":
        os.truncate(weights, 4096)
    else:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    reads: dict[str, Any] = {
        "encode": lambda: layer.encode(h),
        "values": lambda: layer.values(h, [1]),
        "pre": lambda: layer.pre(h, [1]),
        "decoder": lambda: layer.decoder([1]),
        "preselect": layer.preselect,
    }
    for name, read in reads.items():
        with pytest.raises(PackError) as caught:
            read()
        assert str(caught.value) == (
            f"{weights}: layer 2: its file was written to while it is in use; "
            f"found {weights.stat().st_size} bytes; expected {before.st_size} bytes, unchanged. "
            "Rename a new file over the old one, and open it again"
        ), name


def test_a_file_that_was_replaced_or_deleted_is_there_as_long_as_it_is_used(copied: Path) -> None:
    weights = copied / "sae.safetensors"
    layer = SaeLayers.open(copied).layer(2)
    h = np.ones((2, layer.width), np.float32)
    before = layer.encode(h)
    weights.with_name("new").write_bytes(b"another")
    weights.with_name("new").replace(weights)
    assert np.array_equal(layer.encode(h).values, before.values)
    weights.unlink()
    assert np.array_equal(layer.encode(h).values, before.values)
