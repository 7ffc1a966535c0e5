"""Recordings: what was written comes back, and what is none is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scope_runtime.errors import PackError
from scope_runtime.llama.capture import TextResiduals
from scope_runtime.recording import read_recording, write_recording


def about(
    version: object = 1, model: object = "ab", texts: object = 1, **more: object
) -> dict[str, str]:
    said = {"version": version, "model": model, "texts": texts, **more}
    return {"scope.recording": json.dumps(said)}


META = about()


def texts() -> list[TextResiduals]:
    rng = np.random.default_rng(0)
    return [
        TextResiduals(
            tuple(range(n)),
            {layer: rng.standard_normal((n, 8)).astype(np.float32) for layer in (-1, 0, 12)},
        )
        for n in (3, 5)
    ]


def test_round_trip(tmp_path: Path) -> None:
    path, again = tmp_path / "r.safetensors", tmp_path / "s.safetensors"
    write_recording(path, "ab" * 32, texts())
    write_recording(again, "ab" * 32, texts())
    assert path.read_bytes() == again.read_bytes()
    found = read_recording(path)
    assert found.model == "ab" * 32
    for text, wanted in zip(found.texts, texts(), strict=True):
        assert text.tokens == wanted.tokens
        assert list(text.layers) == [-1, 0, 12]
        for layer, h in wanted.layers.items():
            assert np.array_equal(text.residual(layer), h.astype(np.float16).astype(np.float32))


def test_where_the_answer_begins_comes_back(tmp_path: Path) -> None:
    first, second = texts()
    path = tmp_path / "r.safetensors"
    write_recording(path, "ab", [replace(first, n_prompt=2), second])
    assert [text.n_prompt for text in read_recording(path).texts] == [2, None]
    write_recording(path, "ab", [first, second])
    assert [text.n_prompt for text in read_recording(path).texts] == [None, None]
    assert b"n_prompt" not in path.read_bytes()


def test_what_f16_cannot_hold_is_refused(tmp_path: Path) -> None:
    text = TextResiduals((1,), {0: np.full((1, 2), 1e6, np.float32)})
    with pytest.raises(PackError, match="text 0 at layer 0 is not finite"):
        write_recording(tmp_path / "r", "", [text])
    with pytest.raises(PackError, match="without texts"):
        write_recording(tmp_path / "r", "", [])
    assert list(tmp_path.iterdir()) == []


HALF = np.zeros((2, 4), np.float16)
TOKENS = np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"a": HALF}, {}, "not a recording of this version; found None"),
        ({"a": HALF}, about(version=2), "not a recording of this version; found 2"),
        ({"a": HALF}, about(texts="2"), "the number of texts is absurd"),
        ({"a": HALF}, about(texts=10**9), "the number of texts is absurd"),
        ({"a": HALF}, about(model=None), "the model's digest is missing"),
        ({"a": HALF}, {"scope.recording": "[" * 10_000}, "not a recording of this version"),
        ({"a": HALF}, about(n_prompt=3), "no list of one number a text"),
        ({"a": HALF}, about(n_prompt=[1, 1]), "no list of one number a text"),
        ({"a": HALF}, about(n_prompt=[True]), "no list of one number a text"),
        ({"0.tokens": TOKENS}, about(n_prompt=[3]), "found 3; expected 1 to 2"),
        ({"0.layer.1": HALF}, META, "text 0 has no tokens"),
        ({"0.tokens": TOKENS}, META, "text 0 has no residuals"),
        ({"0.tokens": TOKENS, "0.layer.x": HALF}, META, "no name of a layer; found 'x'"),
        ({"0.tokens": TOKENS, "0.layer.1": HALF[:1]}, META, "no F16 residual of 2 tokens"),
        ({"0.tokens": TOKENS, "0.layer.1": HALF + np.float16("nan")}, META, "not finite"),
        ({"0.tokens": TOKENS, "0.layer.1": HALF, "b": HALF}, META, "has no place in a recording"),
    ],
)
def test_what_is_no_recording_is_refused(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    save_file(tensors, path, metadata)
    with pytest.raises(PackError, match=message):
        read_recording(path)


def test_bytes_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    for data in (b"", b"GGUF", b"\xff" * 100):
        path.write_bytes(data)
        with pytest.raises(PackError, match="no safetensors file"):
            read_recording(path)
    with pytest.raises(PackError, match="no such file"):
        read_recording(tmp_path / "none")
