"""Control vectors: as llama.cpp has them, no more and no less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from scope_runtime.errors import PackError
from scope_runtime.vectors import read_control_vector, write_control_vector
from tests.support.file_cases import FileCase, file_cases
from tests.support.ggml_gguf import ggml_reads
from tests.support.mutations import survive
from tests.support.raw_gguf import vector as raw_vector

RNG = np.random.default_rng(1)
LAYERS = {
    3: RNG.standard_normal(8).astype(np.float32),
    1: RNG.standard_normal(8).astype(np.float32),
}
METADATA = {"scope.source": "tests", "scope.alpha": "4"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_control_vector(tmp_path / "v.gguf", LAYERS, model_hint="qwen3", metadata=METADATA)
    vector = read_control_vector(tmp_path / "v.gguf")
    assert vector.model_hint == "qwen3"
    assert vector.width == 8
    assert list(vector.layers) == [1, 3]
    assert vector.metadata == (
        ("controlvector.layer_count", "2"),
        ("scope.alpha", "4"),
        ("scope.source", "tests"),
    )
    for layer, direction in LAYERS.items():
        assert np.array_equal(vector.layers[layer], direction)
        assert not vector.layers[layer].flags.writeable


def test_same_input_same_bytes(tmp_path: Path) -> None:
    write_control_vector(tmp_path / "a.gguf", LAYERS, metadata=METADATA)
    other_order = dict(sorted(LAYERS.items()))
    write_control_vector(
        tmp_path / "b.gguf", other_order, metadata=dict(reversed(METADATA.items()))
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_gguf_library_reads_it(tmp_path: Path) -> None:
    write_control_vector(tmp_path / "v.gguf", LAYERS, model_hint="qwen3")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert {each.name: each.data.tolist() for each in reader.tensors} == {
        f"direction.{layer}": values.tolist() for layer, values in LAYERS.items()
    }
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen3"


def test_llama_cpp_reads_it(tmp_path: Path) -> None:
    """What its loader asks of a file: names, F32, one dimension, one length; read by ggml itself."""
    write_control_vector(tmp_path / "v.gguf", LAYERS, metadata=METADATA)
    tensors = ggml_reads(tmp_path / "v.gguf")
    assert tensors == {"direction.1": (0, 32), "direction.3": (0, 32)}


def test_a_vector_without_keys_is_read(tmp_path: Path) -> None:
    raw = raw_vector()
    raw.keys.clear()
    (tmp_path / "v.gguf").write_bytes(raw.to_bytes())
    vector = read_control_vector(tmp_path / "v.gguf")
    assert vector.model_hint is None
    assert vector.metadata == ()


@pytest.mark.parametrize("case", file_cases("vector"), ids=lambda case: case.name)
def test_bad_vectors_are_refused(case: FileCase, tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    file.write_bytes(case.raw())
    with pytest.raises(PackError) as caught:
        read_control_vector(file)
    assert str(caught.value) == f"{file}: {case.message}"


def test_mutations_are_refused_or_read(tmp_path: Path) -> None:
    raw = raw_vector().to_bytes()
    refused, _ = survive(
        read_control_vector, raw, tmp_path / "v", n=2500, seed=2, most_bytes=64 << 20
    )
    assert refused > 1000


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "a control vector without directions"),
        (
            {0: LAYERS[1]},
            "direction.0 is refused by llama.cpp; expected direction.1 or above. "
            "Block 0 can be steered with a feature pack",
        ),
        ({-1: LAYERS[1]}, "direction.-1: no model has such a layer; expected 1 to 1023"),
        ({1: LAYERS[1], 2: LAYERS[1][:4]}, "direction.2 differs in width; found 4; expected 8"),
        ({1: np.zeros(8)}, "direction.1 is no row of F32; found float64 of 1 dimensions"),
        (
            {1: np.zeros((2, 4), np.float32)},
            "direction.1 is no row of F32; found float32 of 2 dimensions",
        ),
        (
            {1: np.array([1, np.inf], np.float32)},
            "direction.1 is not finite; found inf at [1]",
        ),
    ],
)
def test_vectors_that_are_not_written(tmp_path: Path, layers: dict[int, Any], message: str) -> None:
    with pytest.raises(PackError) as caught:
        write_control_vector(tmp_path / "v.gguf", layers)
    assert str(caught.value) == f"{tmp_path / 'v.gguf'}: {message}"
    assert list(tmp_path.iterdir()) == []


def test_foreign_keys_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"not ours to write; found general\.name"):
        write_control_vector(tmp_path / "v.gguf", LAYERS, metadata={"general.name": "x"})
