"""Models are checked before llama.cpp sees them."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import gguf
import pytest

from scope_runtime.errors import ModelError
from scope_runtime.files import open_regular
from scope_runtime.gguf_check import read_header
from scope_runtime.gguf_types import TENSOR_TYPES
from scope_runtime.llama.checks import check_model, model_digest
from tests.support.damage import damaged
from tests.support.file_cases import FileCase, file_cases
from tests.support.ggml_gguf import ggml_reads
from tests.support.mutations import mutations, survive
from tests.support.raw_gguf import Key
from tests.support.raw_gguf import model as raw_model


def test_what_a_model_is(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(raw_model().to_bytes())
    info = check_model(file)
    assert (info.architecture, info.name) == ("qwen3", "test")
    assert (info.n_layer, info.n_embd, info.n_vocab, info.n_ctx_train) == (4, 32, 3, 512)
    assert not info.has_mtp_layers
    assert info.quantization == "F32, Q8_0"
    assert info.chat_template == "{{ messages }}"
    assert info.files == (str(file),)
    assert info.file_bytes == file.stat().st_size


def test_prediction_layers_are_not_steered(tmp_path: Path) -> None:
    raw = raw_model()
    raw.keys.append(Key("qwen3.nextn_predict_layers", "u32", 1))
    (tmp_path / "m.gguf").write_bytes(raw.to_bytes())
    info = check_model(tmp_path / "m.gguf")
    assert (info.n_layer, info.n_mtp_layers, info.has_mtp_layers) == (3, 1, True)


@pytest.mark.parametrize("case", file_cases("model"), ids=lambda case: case.name)
def test_bad_models_are_refused(case: FileCase, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(case.raw())
    with pytest.raises(ModelError) as caught:
        check_model(file)
    assert str(caught.value) == f"{file}: {case.message}"


def test_mutations_are_refused_or_read(tmp_path: Path) -> None:
    raw = raw_model().to_bytes()
    refused, _ = survive(check_model, raw, tmp_path / "m", n=2500, seed=3, most_bytes=64 << 20)
    assert refused > 1000


def test_what_passes_here_passes_ggml(tmp_path: Path) -> None:
    """The other way round is not asked: we are stricter."""
    file = tmp_path / "m.gguf"
    passed = 0
    for data in mutations(raw_model().to_bytes(), 2000, seed=4):
        file.write_bytes(data)
        try:
            with open_regular(file, ModelError) as opened:
                header = read_header(opened, str(file), ModelError)
        except ModelError:
            continue
        passed += 1
        tensors = ggml_reads(file)
        assert tensors is not None
        assert tensors == {
            each.name: (each.type.number, each.n_bytes) for each in header.tensors.values()
        }
    assert passed > 100


def test_types_are_those_of_the_gguf_library() -> None:
    for number, sizes in gguf.GGML_QUANT_SIZES.items():
        if number.name == "Q8_1":  # 36 bytes in ggml-common.h; gguf-py says 40; never in files
            continue
        ours = TENSOR_TYPES[int(number)]
        assert (ours.name, ours.block, ours.block_bytes) == (number.name, *sizes)


def test_a_large_model_takes_as_long_as_its_header(tmp_path: Path) -> None:
    raw = raw_model()
    raw.key("tokenizer.ggml.tokens").value = [f"token{n}" for n in range(150_000)]
    raw.key("tokenizer.ggml.scores").value = [0.0] * 150_000
    raw.tensor("output_norm.weight").dims = [32, 160_000_000]
    file = tmp_path / "m.gguf"
    head = raw.to_bytes()
    file.write_bytes(head)
    os.truncate(file, len(head) + 20_480_000_000)
    start = time.monotonic()
    info = check_model(file)
    assert time.monotonic() - start < 5
    assert info.n_vocab == 150_000
    assert info.file_bytes > 20_000_000_000


def write_split(folder: Path, n_parts: int) -> list[Path]:
    """A model over several files, one tensor in each."""
    tensors = raw_model().tensors
    files = []
    for part in range(n_parts):
        raw = raw_model()
        if part:
            raw.keys = [Key("general.architecture", "string", "qwen3")]
        raw.keys += [
            Key("split.no", "u16", part),
            Key("split.count", "u16", n_parts),
            Key("split.tensors.count", "i32", n_parts),
        ]
        raw.tensors = [tensors[part]]
        files.append(folder / f"m-{part + 1:05}-of-{n_parts:05}.gguf")
        files[-1].write_bytes(raw.to_bytes())
    return files


def test_a_split_model_is_one_model(tmp_path: Path) -> None:
    files = write_split(tmp_path, 3)
    info = check_model(files[0])
    assert info.files == tuple(map(str, files))
    assert info.file_bytes == sum(file.stat().st_size for file in files)
    assert info.quantization == "F32, Q8_0"


def test_split_models_that_are_refused(tmp_path: Path) -> None:
    files = write_split(tmp_path, 3)
    with pytest.raises(ModelError) as caught:
        check_model(files[1])
    assert str(caught.value) == (
        f"{files[1]}: not the first part of a split model; found part 2 of 3; "
        "expected m-00001-of-00003.gguf"
    )
    other = tmp_path / "other.gguf"
    other.write_bytes(files[0].read_bytes())
    with pytest.raises(ModelError, match=r"not named like one; expected NAME-00001-of-00003\.gguf"):
        check_model(other)
    third = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(ModelError) as caught:
        check_model(files[0])
    assert str(caught.value) == (
        f"{files[2]}: another part than its name says; found split.no 1; expected split.no 2"
    )
    files[2].write_bytes(third[:-40])
    with pytest.raises(ModelError, match=r"m-00003-of-00003\.gguf: cut short"):
        check_model(files[0])
    files[2].unlink()
    with pytest.raises(ModelError) as caught:
        check_model(files[0])
    assert str(caught.value) == f"{files[0]}: part 3 of 3 is missing; expected {files[2]}"


def test_the_digest_of_a_model_is_remembered(tmp_path: Path) -> None:
    file, cache = tmp_path / "m.gguf", tmp_path / "cache"
    file.write_bytes(raw_model().to_bytes())
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    size = file.stat().st_size
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert model_digest(file, progress=progress, cache=cache) == expected
    assert calls[-1] == (size, size)
    calls.clear()
    assert model_digest(file, progress=progress, cache=cache) == expected
    assert calls == []


def test_a_changed_model_is_read_again(tmp_path: Path) -> None:
    file, cache = tmp_path / "m.gguf", tmp_path / "cache"
    file.write_bytes(raw_model().to_bytes())
    before = model_digest(file, cache=cache)
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(1, 1))
    assert model_digest(file, cache=cache) == hashlib.sha256(changed).hexdigest() != before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"file": 1, "sha256": "x"}', b"\xff"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    file, cache = tmp_path / "m.gguf", tmp_path / "cache"
    file.write_bytes(raw_model().to_bytes())
    expected = model_digest(file, cache=cache)
    (entry,) = (cache / "digests").iterdir()
    entry.write_bytes(content)
    assert model_digest(file, cache=cache) == expected


def test_no_memory_to_be_had(tmp_path: Path) -> None:
    file, cache = tmp_path / "m.gguf", tmp_path / "cache"
    file.write_bytes(raw_model().to_bytes())
    cache.write_text("in the way")
    assert model_digest(file, cache=cache) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_digest_of_a_split_model(tmp_path: Path) -> None:
    files = write_split(tmp_path, 2)
    lines = "".join(hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in files)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert model_digest(files[0], cache=tmp_path / "cache") == expected


def test_damage_is_repeatable() -> None:
    assert damaged("model", [{"cut": 40}]) == damaged("model", [{"cut": 40}])
