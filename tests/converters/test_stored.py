"""Arrays in their files against numpy and torch: rows, columns, types, layouts; what is damaged."""

from __future__ import annotations

import json
import os
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converters.readers.npz_file import open_npz
from converters.readers.safetensors_file import open_safetensors
from converters.readers.stored import File
from converters.readers.torch_file import open_torch
from scope_runtime.errors import PackError

IDS = np.array([7, 0, 30])


def check_matrix(file: File, name: str, expected: Any) -> None:
    array = file.array(name, expected.shape)
    assert np.array_equal(array.take(IDS, 0), expected[IDS])
    assert np.array_equal(array.take(np.array([3, 1]), 1), expected[:, [3, 1]])
    every = np.concatenate([block for _, block in array.blocks()])
    assert np.array_equal(every, expected)
    assert every.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(tmp_path: Path, dtype: Any) -> None:
    values = torch.randn(31, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    odd = torch.ones(3, dtype=torch.uint8)  # so that what follows lies at an odd place
    save_file({"a": odd, "m": values}, tmp_path / "x.safetensors")
    torch.save({"a": odd, "m": values}, tmp_path / "x.pt")
    for file in (open_safetensors(tmp_path / "x.safetensors"), open_torch(tmp_path / "x.pt")):
        check_matrix(file, "m", values.float().numpy())
        with pytest.raises(PackError, match="a is of a type that is not read"):
            file.array("a")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    values = np.random.default_rng(0).standard_normal((31, 5)).astype(np.float32)
    save(tmp_path / "x.npz", m=values, v=values[0], one=np.float32(2.5))
    file = open_npz(tmp_path / "x.npz")
    check_matrix(file, "m", values)
    assert np.array_equal(file.vector("v", 5), values[0])
    assert file.scalar("one") == 2.5


def test_npz_column_by_column(tmp_path: Path) -> None:
    values = np.asfortranarray(np.random.default_rng(0).standard_normal((31, 5)).astype(np.float32))
    np.savez(tmp_path / "x.npz", m=values)
    with pytest.raises(PackError, match=r"'m\.npy' is stored column by column, which is not read"):
        open_npz(tmp_path / "x.npz")


def zipped(path: Path, name: str, content: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(name, content)
    return path


def npy(descr: str = "'<f4'", shape: str = "(4,)", n_bytes: int = 16) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(n_bytes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"nothing", "'a.npy' is no array"),
        ("a.npy", npy(descr="'|O'"), "is of a type that is not read; found '|O'"),
        ("a.npy", npy(descr="'>f4'"), "is of a type that is not read"),
        ("a.npy", npy(shape="(1 << 50,)"), "has a damaged header"),
        ("a.npy", npy(shape="(1000000000,)"), "does not have the bytes of its shape"),
        ("a.npy", npy(shape="(0,)"), "has an impossible shape"),
        ("a.npy", npy(shape="(2, 2, 1, 1, 1)"), "has an impossible shape"),
        ("../a.npy", npy(), "holds something other than arrays"),
        ("a.txt", npy(), "holds something other than arrays"),
    ],
)
def test_npz_that_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = zipped(tmp_path / "x.npz", name, content)
    with pytest.raises(PackError) as caught:
        open_npz(path)
    assert message in str(caught.value)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """256 MB of zeros in a quarter of one: read in pieces, and only what is asked for is kept."""
    shape = (1 << 16, 1 << 10)
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("m.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(shape=str(shape), n_bytes=0))
        for _ in range(1 << 4):
            member.write(bytes(1 << 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = open_npz(path).array("m").take(np.array([1 << 15]), 0)
    assert part.shape == (1, 1 << 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file, or cut short; found 0 bytes"),
        (struct.pack("<Q", 1 << 60) + b"{}", "not a safetensors file, or cut short"),
        (safetensors(b"{{"), "the header is no JSON"),
        (safetensors(b"[" * 100_000), "the header is no JSON"),
        (safetensors([]), "the header is no table of tensors"),
        (safetensors({"a": 1}), "'a' is no description of a tensor"),
        (safetensors({"a": tensor(dtype="F3")}, bytes(16)), "'a' is of an unknown type"),
        (safetensors({"a": tensor(shape=[-4])}, bytes(16)), "an impossible shape or place"),
        (safetensors({"a": tensor(shape=[True])}, bytes(16)), "an impossible shape or place"),
        (safetensors({"a": tensor(offsets=[0])}, bytes(16)), "an impossible shape or place"),
        (safetensors({"a": tensor(shape=[0], offsets=[0, 0])}), "'a' is empty"),
        (safetensors({"a": tensor(shape=[1 << 40])}, bytes(16)), "the bytes of its shape"),
        (safetensors({"a": tensor()}, bytes(15)), "do not fill the file, or it is cut short"),
        (safetensors({"a": tensor()}, bytes(17)), "do not fill the file, or it is cut short"),
        (
            safetensors({"a": tensor(), "b": tensor(offsets=[8, 24])}, bytes(24)),
            "'b' does not follow the tensor before it",
        ),
    ],
)
def test_safetensors_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PackError) as caught:
        open_safetensors(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    """A gigabyte with a hole in it: some rows and columns take little more memory than they are."""
    shape = (1 << 15, 1 << 13)
    n_bytes = 4 * shape[0] * shape[1]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"m": tensor(shape, (0, n_bytes))}))
    os.truncate(path, path.stat().st_size + n_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    array = open_safetensors(path).array("m", shape)
    assert array.take(np.array([1, 30_000]), 0).shape == (2, 1 << 13)
    assert array.take(np.array([5]), 1).shape == (1 << 15, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
