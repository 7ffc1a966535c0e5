"""safetensors: u64 length, JSON header of names, types, shapes and offsets, then the bytes.

The header is checked against the file before anything is read: lengths, types, shapes against
byte counts, no hole and no overlap (the format forbids both). From the format's own description in
the safetensors project's README.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from converters.readers.stored import (
    FLOATS,
    File,
    FileArray,
    Identity,
    OtherArray,
    StoredArray,
)
from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly

KIND = "safetensors"
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_DIMS = 4
_BYTES = {
    **{name: np.dtype(each).itemsize for name, each in FLOATS.items()},
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor's bytes lie, from the end of the header."""

    first: int
    last: int
    shape: tuple[int, ...]
    type: str


def open_safetensors(path: Path) -> File:
    """Look into a safetensors file. Raises PackError if it is damaged."""
    with open_regular(path, PackError) as file:
        size = os.fstat(file.fileno()).st_size
        start = read_exactly(file, 0, 8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= size - 8:
            _fail(path, "not a safetensors file, or cut short", found=f"{size} bytes")
        if length > MAX_HEADER_BYTES:
            _fail(path, "the header is too long", found=f"{length} bytes")
        header = _header(path, bytes(read_exactly(file, 8, length)))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            _fail(path, "the metadata is no table", found=repr(metadata)[:80])
        places = {name: _place(path, name, entry) for name, entry in header.items()}
        _check_order(path, places, size - 8 - length)
        identity = Identity.of(path, file)
    arrays: dict[str, StoredArray] = {}
    for name, place in places.items():
        offset = 8 + length + place.first
        if place.type in FLOATS:
            arrays[name] = FileArray(identity, offset, place.shape, place.type)
        else:
            arrays[name] = OtherArray(place.shape, place.type)
    return File(path, KIND, arrays, {str(key): str(value) for key, value in metadata.items()})


def _header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as reason:
        _fail(path, "the header is no JSON", found=str(reason)[:200])
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        _fail(path, "the header is no table of tensors")
    return header


def _place(path: Path, name: str, entry: Any) -> _Place:
    what = repr(name[:80])
    if not isinstance(entry, dict):
        _fail(path, f"{what} is no description of a tensor")
    kind: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _BYTES:
        _fail(path, f"{what} is of an unknown type", found=repr(kind)[:40])
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        _fail(path, f"{what} has an impossible shape or place", found=f"{shape} {offsets}"[:120])
    if len(shape) > MAX_DIMS or 0 in shape:
        _fail(path, f"{what} is empty or has too many dimensions", found=str(shape)[:80])
    first, last = offsets
    n_bytes = math.prod(shape) * _BYTES[kind]
    if last - first != n_bytes:
        _fail(
            path,
            f"{what} does not have the bytes of its shape",
            found=f"{last - first} bytes",
            expected=str(n_bytes),
        )
    return _Place(first, last, tuple(shape), kind)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 48
        for each in values
    )


def _check_order(path: Path, places: dict[str, _Place], n_bytes: int) -> None:
    end = 0
    for name, place in sorted(places.items(), key=lambda each: each[1].first):
        if place.first != end:
            _fail(path, f"{name[:80]!r} does not follow the tensor before it")
        end = place.last
    if end != n_bytes:
        _fail(
            path,
            "the tensors do not fill the file, or it is cut short",
            found=f"{n_bytes} bytes of data",
            expected=str(end),
        )


def _fail(
    path: Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
