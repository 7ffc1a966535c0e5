"""npz: a zip archive of ``.npy`` members. Members that are stored plainly are read where they
lie; deflated ones as a stream, in pieces, and only what is asked for is kept.

The layout of ``.npy`` is described in numpy's documentation (``numpy.lib.format``): magic, version,
length, a Python literal with ``descr``, ``fortran_order`` and ``shape``, then the bytes. The literal
is read by `ast.literal_eval`; nothing is unpickled.
"""

from __future__ import annotations

import ast
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from converters.readers.stored import (
    FLOATS,
    NO_ZIP,
    File,
    FileArray,
    Identity,
    StoredArray,
    as_f32,
    block_rows,
)
from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.pack_types import F32Array, I64Array

KIND = "npz"
MAX_MEMBERS = 256
MAX_HEADER_BYTES = 65_536
MAX_DIMS = 4
MAX_RATIO = 1100
"""Deflate cannot do better than about 1032 to 1; what claims more lies about its size."""
_TYPES = {"<f4": "F32", "<f2": "F16"}
_ZIP_ERRORS = (*NO_ZIP, zlib.error, RuntimeError, struct.error, KeyError, OverflowError)


def open_npz(path: Path) -> File:
    """Look into an npz file. Raises PackError if it is damaged or holds anything but arrays."""
    arrays: dict[str, StoredArray] = {}
    with open_regular(path, PackError) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if len(members) > MAX_MEMBERS:
                    _fail(path, "too many arrays", found=str(len(members)))
                identity = Identity.of(path, file)
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    if name in arrays:
                        _fail(path, f"{name[:80]!r} is there twice")
                    arrays[name] = _array(path, file, archive, member, size, identity)
        except _ZIP_ERRORS as reason:
            _fail(path, "not an npz file, or cut short", found=str(reason)[:200])
    return File(path, KIND, arrays, {})


def _array(
    path: Path,
    file: BinaryIO,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    size: int,
    identity: Identity,
) -> StoredArray:
    name = member.filename[:80]
    if not name.endswith(".npy") or "/" in name or "\\" in name or ".." in name:
        _fail(path, "holds something other than arrays", found=repr(name), expected="name.npy")
    if member.flag_bits & 1 or member.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):
        _fail(path, f"{name!r} is packed in a way that is not read")
    if member.compress_size > size or member.file_size > MAX_RATIO * max(member.compress_size, 1):
        _fail(path, f"{name!r} cannot be as large as it says", found=f"{member.file_size} bytes")
    with archive.open(member) as stream:
        shape, type, fortran, header_bytes = _npy_header(path, name, stream)
    n_bytes = math.prod(shape) * np.dtype(FLOATS[type]).itemsize
    if header_bytes + n_bytes != member.file_size:
        _fail(
            path,
            f"{name!r} does not have the bytes of its shape",
            found=f"{member.file_size}",
            expected=f"{header_bytes + n_bytes}",
        )
    if fortran and len(shape) > 1:
        _fail(path, f"{name!r} is stored column by column, which is not read")
    if member.compress_type == zipfile.ZIP_DEFLATED:
        return DeflatedArray(identity, member, header_bytes, shape, type)
    local = bytes(read_exactly(file, member.header_offset, 30))
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        _fail(path, f"{name!r} has no header of its own")
    start = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + header_bytes
    if start + n_bytes > size or member.compress_size != member.file_size:
        _fail(path, f"{name!r} does not fit", found=f"{size} bytes")
    return FileArray(identity, start, shape, type)


def _npy_header(path: Path, name: str, stream: Any) -> tuple[tuple[int, ...], str, bool, int]:
    start = stream.read(12)
    if len(start) < 12 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        _fail(path, f"{name!r} is no array")
    wide = start[6] > 1
    length = int.from_bytes(start[8:12] if wide else start[8:10], "little")
    if length > MAX_HEADER_BYTES:
        _fail(path, f"{name!r} has too long a header", found=f"{length} bytes")
    text = (b"" if wide else start[10:]) + stream.read(length - (0 if wide else 2))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes, in a file that is refused anyway
            header = ast.literal_eval(text[:length].decode("latin-1").strip())
        shape, fortran = tuple(header["shape"]), header["fortran_order"]
        descr = header["descr"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as reason:
        _fail(path, f"{name!r} has a damaged header", found=str(reason)[:120])
    fine = (
        isinstance(fortran, bool)
        and len(shape) <= MAX_DIMS
        and all(
            isinstance(each, int) and not isinstance(each, bool) and 0 < each < 1 << 40
            for each in shape
        )
    )
    if not fine:
        _fail(path, f"{name!r} has an impossible shape", found=repr(shape)[:80])
    if not isinstance(descr, str) or descr not in _TYPES:
        _fail(
            path,
            f"{name!r} is of a type that is not read",
            found=repr(descr)[:80],
            expected="'<f4'",
        )
    return shape, _TYPES[descr], fortran, (12 if wide else 10) + length


@dataclass(frozen=True, slots=True, eq=False)
class DeflatedArray:
    """A deflated member, row by row; see `converters.readers.stored.StoredArray`."""

    identity: Identity
    member: zipfile.ZipInfo
    header_bytes: int
    shape: tuple[int, ...]
    type: str

    def take(self, ids: I64Array, axis: int) -> F32Array:
        if axis == 1:
            return np.concatenate([block[:, ids] for _, block in self.blocks()])
        out = np.empty((len(ids), *self.shape[1:]), np.float32)
        for start, block in self.blocks():
            inside = (ids >= start) & (ids < start + len(block))
            out[inside] = block[ids[inside] - start]
        return out

    def blocks(self) -> Iterator[tuple[int, F32Array]]:
        shape = self.shape or (1,)
        item = np.dtype(FLOATS[self.type]).itemsize
        row_bytes = item * math.prod(shape[1:])
        with self.identity.opened() as file:
            try:
                with zipfile.ZipFile(file) as archive, archive.open(self.member) as stream:
                    stream.read(self.header_bytes)
                    for start, stop in block_rows(shape):
                        raw = stream.read((stop - start) * row_bytes)
                        if len(raw) != (stop - start) * row_bytes:
                            _fail(self.identity.path, f"{self.member.filename!r} is cut short")
                        values = np.frombuffer(raw, FLOATS[self.type])
                        yield start, as_f32(values.reshape(stop - start, *shape[1:]), self.type)
            except _ZIP_ERRORS as reason:
                _fail(self.identity.path, "damaged", found=str(reason)[:200])


def _fail(
    path: Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
