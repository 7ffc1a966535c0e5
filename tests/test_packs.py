"""Feature packs: written, read back, read by others, refused."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scope_runtime.errors import PackError
from scope_runtime.packs import PackLayer, PackModel, PackStats, read_pack, write_pack
from scope_runtime.policy.model import EMBEDDING, GateKind
from tests.support.file_cases import FileCase, file_cases
from tests.support.mutations import survive
from tests.support.raw_gguf import pack as raw_pack

MODEL = PackModel("qwen3", 4, 8, "a model")
RNG = np.random.default_rng(0)
FULL = RNG.standard_normal((16, 8)).astype(np.float32)
BIAS = RNG.standard_normal(16).astype(np.float32)


def some_layer(layer: int = 2, **changes: Any) -> PackLayer:
    ids = np.array([3, 12, 5])
    sound = PackLayer(
        layer=layer,
        ids=ids,
        labels=("three", "", "fünf"),
        enc=FULL[ids],
        enc_bias=BIAS[ids],
        dec=FULL[ids] * 2,
        gate=GateKind.RELU,
        k=4,
        d_sae=16,
        notes=("relu stands in",),
    )
    return replace(sound, **changes)


def topk_layer(layer: int = 1, **changes: Any) -> PackLayer:
    whole = {"gate": GateKind.TOPK, "full_enc": FULL, "full_enc_bias": BIAS, "notes": ()}
    return some_layer(layer, **{**whole, **changes})


def same(one: PackLayer, other: PackLayer) -> bool:
    def value(layer: PackLayer, name: str) -> object:
        content = getattr(layer, name)
        return content.tolist() if isinstance(content, np.ndarray) else content

    names = set(PackLayer.__slots__) - {"stats"}
    if (one.stats is None) != (other.stats is None):
        return False
    if one.stats and other.stats:
        for name in ("max", "mean", "firing_rate", "quantiles"):
            if not np.array_equal(getattr(one.stats, name), getattr(other.stats, name)):
                return False
        if not np.allclose(one.stats.levels, other.stats.levels):
            return False
    return all(value(one, name) == value(other, name) for name in names)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    row = np.ones(3, np.float32)
    stats = PackStats(
        row * 9, row * 2, row / np.float32(8), (0.5, 0.75), np.ones((3, 2), np.float32)
    )
    thresholds = np.array([0.5, 1, 2], np.float32)
    layers = [
        some_layer(3, gate=GateKind.THRESHOLD, thresholds=thresholds, stats=stats),
        topk_layer(1),
        some_layer(EMBEDDING, gate=GateKind.NONE, k=None, d_sae=None, notes=()),
    ]
    write_pack(tmp_path / "p.gguf", MODEL, layers, {"b": "2", "a.x": "several\nlines", "c": ""})
    pack = read_pack(tmp_path / "p.gguf")
    assert pack.path == str(tmp_path / "p.gguf")
    assert pack.model == MODEL
    assert pack.version == 1
    assert pack.provenance == (("a.x", "several\nlines"), ("b", "2"), ("c", ""))
    assert list(pack.layers) == [EMBEDDING, 1, 3]
    for layer in layers:
        expected = replace(layer, d_sae=16) if layer.layer == 1 else layer
        assert same(pack.layers[layer.layer], expected)
    assert pack.layers[1].row(12) == 1


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    write_pack(tmp_path / "p.gguf", MODEL, [some_layer()])
    raw = (tmp_path / "p.gguf").read_bytes()
    assert read_pack(tmp_path / "p.gguf").digest == hashlib.sha256(raw).hexdigest()


def test_same_input_same_bytes(tmp_path: Path) -> None:
    write_pack(tmp_path / "a.gguf", MODEL, [topk_layer(1), some_layer(2)], {"x": "1", "y": "2"})
    write_pack(tmp_path / "b.gguf", MODEL, [some_layer(2), topk_layer(1)], {"y": "2", "x": "1"})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_pack_survives_the_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 20))
    model = PackModel("llama", data.draw(st.integers(1, 6)), width)
    numbers = st.integers(EMBEDDING, model.layers - 1)
    layers = []
    for layer in data.draw(st.lists(numbers, min_size=1, max_size=4, unique=True)):
        ids = data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))
        text = st.text(st.characters(categories=["L", "N", "P"]), max_size=20)
        labels = tuple(data.draw(text) for _ in ids)
        rng = np.random.default_rng(ids)
        enc, dec = rng.standard_normal((2, len(ids), width)).astype(np.float32)
        bias = rng.standard_normal(len(ids)).astype(np.float32)
        gate = data.draw(st.sampled_from([GateKind.NONE, GateKind.RELU]))
        layers.append(PackLayer(layer, np.array(ids), labels, enc, bias, dec, gate))
    write_pack(tmp_path / "p.gguf", model, layers)
    pack = read_pack(tmp_path / "p.gguf")
    assert pack.model == model
    assert len(pack.layers) == len(layers)
    assert all(same(pack.layers[layer.layer], layer) for layer in layers)


def test_the_gguf_library_reads_it(tmp_path: Path) -> None:
    write_pack(tmp_path / "p.gguf", MODEL, [topk_layer(1)])
    reader = gguf.GGUFReader(tmp_path / "p.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.array_equal(tensors["layer.1.full_enc"], FULL)
    assert np.array_equal(tensors["layer.1.dec"], topk_layer().dec)
    assert reader.fields["featurepack.layer.1.gate"].contents() == "topk"
    assert reader.fields["featurepack.feature.id"].contents() == [3, 12, 5]


def test_a_pack_that_others_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.gguf").write_bytes(raw_pack().to_bytes())
    pack = read_pack(tmp_path / "p.gguf")
    assert list(pack.layers) == [EMBEDDING, 2]
    assert pack.layers[2].ids.tolist() == [5, 2]
    assert pack.layers[2].labels == ("second", "")
    stats = pack.layers[EMBEDDING].stats
    assert stats is not None
    assert stats.quantiles.shape == (1, 2)


def test_whole_encoders_stay_in_the_file(tmp_path: Path) -> None:
    write_pack(tmp_path / "p.gguf", MODEL, [topk_layer(1)])
    layer = read_pack(tmp_path / "p.gguf").layers[1]
    assert isinstance(layer.full_enc, np.memmap)
    assert not isinstance(layer.enc, np.memmap)


def test_nothing_that_was_read_can_be_written(tmp_path: Path) -> None:
    write_pack(tmp_path / "p.gguf", MODEL, [topk_layer(1)])
    layer = read_pack(tmp_path / "p.gguf").layers[1]
    for array in (layer.ids, layer.enc, layer.enc_bias, layer.dec, layer.full_enc):
        assert array is not None
        assert not array.flags.writeable


def test_a_feature_that_is_not_there() -> None:
    with pytest.raises(PackError) as caught:
        some_layer().row(6)
    assert str(caught.value) == (
        "feature 6 of layer 2 is not in the pack; found 6; expected one of 3, 5, 12"
    )
    ids = np.arange(0, 200, 2)
    rows = np.zeros((100, 8), np.float32)
    many = PackLayer(0, ids, ("",) * 100, rows, rows[:, 0], rows, GateKind.RELU)
    with pytest.raises(PackError) as caught:
        many.row(101)
    assert str(caught.value) == (
        "feature 101 of layer 0 is not in the pack; found 101; "
        "expected one of 94, 96, 98, 100, 102, 104, 106, 108 and 92 more"
    )


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    write_pack(tmp_path / "p.gguf", MODEL, [topk_layer(1), some_layer(EMBEDDING)])
    with pytest.raises(PackError) as caught:
        read_pack(tmp_path / "p.gguf").layer(2)
    assert str(caught.value) == "layer 2 is not in the pack; expected one of embedding, 1"


@pytest.mark.parametrize("case", file_cases("pack"), ids=lambda case: case.name)
def test_bad_packs_are_refused(case: FileCase, tmp_path: Path) -> None:
    file = tmp_path / "p.gguf"
    file.write_bytes(case.raw())
    with pytest.raises(PackError) as caught:
        read_pack(file)
    assert str(caught.value) == f"{file}: {case.message}"


def test_mutations_are_refused_or_read(tmp_path: Path) -> None:
    refused, _ = survive(
        read_pack, raw_pack().to_bytes(), tmp_path / "p", n=2500, seed=1, most_bytes=64 << 20
    )
    assert refused > 1500


def nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    spoilt = array.copy()
    spoilt.flat[-1] = np.nan
    return spoilt


BAD_LAYERS: list[tuple[str, dict[str, Any], str]] = [
    ("nan", {"dec": nan(FULL[:3])}, "layer 2: dec is not finite; found nan at [2, 7]"),
    ("f64", {"enc": np.zeros((3, 8))}, "layer 2: enc is not F32; found float64"),
    (
        "rows",
        {"dec": FULL[:2]},
        "layer 2: dec has the wrong shape; found (2, 8); expected (3, 8)",
    ),
    ("none", {"ids": np.array([], np.int64)}, "layer 2 has no features"),
    ("twice", {"ids": np.array([3, 3, 5])}, "layer 2: a feature is there twice; found 3"),
    (
        "labels",
        {"labels": ("a",)},
        "layer 2: labels do not match the features; found 1; expected 3",
    ),
    ("k", {"k": 0}, "layer 2: k is no count; found 0; expected 1 or more"),
    (
        "topk",
        {"gate": GateKind.TOPK},
        "layer 2: the gate topk needs k and the layer's whole encoder; found k 4, some rows only",
    ),
    ("threshold", {"gate": GateKind.THRESHOLD}, "layer 2: the gate threshold needs thresholds"),
    ("half", {"full_enc": FULL}, "layer 2: full_enc and full_enc_bias go together"),
]


@pytest.mark.parametrize(("changes", "message"), [each[1:] for each in BAD_LAYERS])
def test_layers_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError) as caught:
        some_layer(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("model", "layers", "provenance", "message"),
    [
        (MODEL, [], {}, "a feature pack without features"),
        (MODEL, [some_layer(2), topk_layer(2)], {}, "layer 2 is there twice"),
        (
            MODEL,
            [some_layer(4)],
            {},
            "layer 4 is not in the model; found 4; expected embedding or 0 to 3",
        ),
        (
            replace(MODEL, width=16),
            [some_layer(2)],
            {},
            "layer 2 does not fit the model; found width 8; expected width 16",
        ),
        (
            MODEL,
            [some_layer(2)],
            {"Source": "x"},
            "a key of the provenance cannot be written; found 'Source'",
        ),
        (
            MODEL,
            [some_layer(2)],
            {"source": "\x1b[31m"},
            "the provenance 'source' has control characters; found '\\x1b[31m'",
        ),
    ],
)
def test_packs_that_are_not_written(
    tmp_path: Path, model: PackModel, layers: list[PackLayer], provenance: Any, message: str
) -> None:
    with pytest.raises(PackError) as caught:
        write_pack(tmp_path / "p.gguf", model, layers, provenance)
    assert str(caught.value) == f"{tmp_path / 'p.gguf'}: {message}"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pack(tmp_path / "p.gguf", MODEL, [some_layer()])
    before = (tmp_path / "p.gguf").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PackError, match="cannot be written; found No space left on device"):
        write_pack(tmp_path / "p.gguf", MODEL, [topk_layer()])
    assert (tmp_path / "p.gguf").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.gguf"]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="cannot be written; found No such file or directory"):
        write_pack(tmp_path / "no" / "p.gguf", MODEL, [some_layer()])


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "p.gguf").symlink_to(tmp_path / "precious")
    write_pack(tmp_path / "p.gguf", MODEL, [some_layer()])
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "p.gguf").is_symlink()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "pipe-link").symlink_to(tmp_path / "pipe")
    wrong = {
        "nothing": "no such file",
        ".": "not a file; found a directory",
        "pipe": "not a file; found a pipe, socket or device",
        "pipe-link": "not a file; found a pipe, socket or device",
        "loop": "cannot be opened; found Too many levels of symbolic links",
    }
    for name, message in wrong.items():
        with pytest.raises(PackError) as caught:
            read_pack(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {message}"


def test_a_sparse_giant_takes_no_memory(tmp_path: Path) -> None:
    """A file may be as large as its header says, and still be empty."""
    raw = raw_pack()
    rows = 1 << 22
    raw.key("featurepack.feature.layer").value = [2, 2]
    raw.tensors = [raw.tensor("layer.2.enc")]
    raw.tensors[0].dims = [65536, rows]
    raw.key("featurepack.model.width").value = 65536
    raw.key("featurepack.feature.id").value = [1, 2]
    raw.key("featurepack.feature.label").value = ["", ""]
    raw.key("featurepack.layer.2.gate").value = "relu"
    file = tmp_path / "p.gguf"
    head = raw.to_bytes()
    file.write_bytes(head)
    os.truncate(file, len(head) + 4 * 65536 * rows)
    with pytest.raises(PackError, match="wrong shape"):
        read_pack(file)
