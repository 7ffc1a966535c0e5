"""The header of a GGUF file, read without trusting a word of it.

Everything that a file declares is checked against what is really there before anything is
allocated, skipped or computed with it: counts against the bytes that are left, string and array
lengths likewise, shapes against overflow, tensor ranges against the end of the file. Tensor data
are not touched, so that a 20 GB model takes as long as its header. The rules are those of
llama.cpp's own reader (``ggml/src/gguf.cpp``), plus those that it leaves to a crash.

Layout (all little-endian): ``GGUF``, u32 version, u64 tensors, u64 keys; per key a string, u32
type, value; per tensor a string, u32 dimensions, u64 per dimension, u32 type, u64 offset; padding;
data. A string is u64 length + bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

from scope_runtime.errors import ScopeError
from scope_runtime.files import read_exactly
from scope_runtime.gguf_bytes import WINDOW_BYTES, ByteReader
from scope_runtime.gguf_types import TENSOR_TYPES, TensorType

MAX_NAME_BYTES = 63  # GGML_MAX_NAME, less its terminator
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_KEY_BYTES = 65_535  # the GGUF specification
MAX_KEYS = 65_536
MAX_TENSORS = 1 << 18
MAX_STRING_BYTES = 16 << 20  # chat templates are the longest strings seen, around 100 kB
MAX_KEPT_ARRAY_BYTES = 16 << 20
MAX_STRINGS = 4 << 20  # in one array; the largest vocabularies have a quarter of a million
_INT64_MAX = (1 << 63) - 1

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        shape: as numpy would give it, slowest dimension first: ``(n_rows, width)``; at least one
            dimension.
        offset: absolute, in bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of a GGUF file.

    Attributes:
        values: scalars and strings; arrays only where they were asked for.
        array_lengths: number of elements of every array, kept or not.
        alignment: of tensor data, in bytes.
        data_end: absolute end of the last tensor's bytes, without padding.
        padded_end: the same with padding; a file may lack it.
    """

    path: str
    file_bytes: int
    version: int
    alignment: int
    values: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    tensors: Mapping[str, TensorInfo]
    data_end: int
    padded_end: int


def read_header(
    file: BinaryIO,
    path: str,
    error: type[ScopeError],
    *,
    keep_array: Callable[[str], bool] = lambda key: False,
) -> Header:
    """Read and check the header of an open GGUF file.

    Args:
        file: opened by `scope_runtime.files.open_regular`.
        path: what to call the file in errors.
        error: class of the errors raised.
        keep_array: whether the array of this key is kept (tokenizers have hundreds of thousands of
            elements); none is unless asked for.

    Raises:
        ScopeError: of the class ``error``, saying what does not hold.
    """
    reader = _Reader(file, path, error)
    reader.magic()
    version = reader.version()
    n_tensors = reader.count("tensors", MAX_TENSORS, least_bytes=8 + 4 + 4 + 8)
    n_keys = reader.count("keys", MAX_KEYS, least_bytes=8 + 4 + 1)
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_keys):
        reader.key_value(values, lengths, keep_array)
    alignment = _alignment(reader, values, lengths)
    tensors, data_end, padded_end = reader.tensors(n_tensors, alignment)
    return Header(
        path,
        reader.size,
        version,
        alignment,
        MappingProxyType(values),
        MappingProxyType(lengths),
        MappingProxyType(tensors),
        data_end,
        padded_end,
    )


def _alignment(reader: _Reader, values: dict[str, Value], lengths: dict[str, int]) -> int:
    alignment = values.get("general.alignment", 0 if "general.alignment" in lengths else 32)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        reader.fail(
            "general.alignment cannot be used",
            found=repr(alignment),
            expected="a power of two up to 1048576",
        )
    return int(alignment)


class _Reader(ByteReader):
    """The parts of a header, in the order in which they come."""

    def magic(self) -> None:
        if self.size < 24:
            self.fail("not a GGUF file", found=f"{self.size} bytes", expected="at least 24")
        magic = bytes(self.take(4, "the magic number"))
        if magic != b"GGUF":
            self.fail("not a GGUF file", found=f"{magic!r} at the start", expected="b'GGUF'")

    def version(self) -> int:
        version = self.u32("the version")
        if version and not version & 0xFFFF:
            self.fail("written for big-endian machines", expected="a little-endian GGUF file")
        if version not in (2, 3):
            self.fail("GGUF version cannot be read", found=str(version), expected="2 or 3")
        return version

    def count(self, what: str, most: int, *, least_bytes: int) -> int:
        """A declared count, checked against what the rest of the file could hold at best."""
        count = self.u64(f"the number of {what}")
        if count > most:
            self.fail(
                f"the number of {what} is absurd", found=str(count), expected=f"at most {most}"
            )
        if count * least_bytes > self.size - self.position:
            self.cut_short(f"its {count} {what}", count * least_bytes)
        return count

    def key_value(
        self, values: dict[str, Value], lengths: dict[str, int], keep_array: Callable[[str], bool]
    ) -> None:
        key = self.name("a key", MAX_KEY_BYTES)
        if not key:
            self.fail("a key is empty")
        if key in values or key in lengths:
            self.fail(f"the key {key!r} is there twice")
        kind = self.u32(f"the key {key!r}")
        if kind != _ARRAY:
            values[key] = self._scalar(kind, key)
            return
        kind = self.u32(f"the key {key!r}")
        length = self.u64(f"the key {key!r}")
        lengths[key] = length
        kept = self._array(kind, length, key, keep_array(key))
        if kept is not None:
            values[key] = kept

    def _scalar(self, kind: int, key: str) -> Scalar:
        what = f"the value of {key!r}"
        if kind == _STRING:
            return self.string(what, MAX_STRING_BYTES)
        code = _SCALARS.get(kind)
        if code is None:
            self.fail(f"{what} has an unknown type", found=str(kind), expected="0 to 12")
        value: Scalar = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]
        return value

    def _array(self, kind: int, length: int, key: str, keep: bool) -> tuple[Scalar, ...] | None:
        what = f"the array {key!r}"
        code = _SCALARS.get(kind)
        if code is None and kind != _STRING:
            self.fail(f"{what} has elements of an unknown type", found=str(kind))
        element_bytes = struct.calcsize(f"<{code}") if code else 8
        n_bytes = length * element_bytes  # of strings, the least that they can take
        if n_bytes > self.size - self.position:
            self.cut_short(what, n_bytes)
        if not code and length > MAX_STRINGS:
            self.fail(
                f"{what} is too long", found=f"{length} strings", expected=f"at most {MAX_STRINGS}"
            )
        if code and not keep:
            self.skip(n_bytes, what)
            return None
        if n_bytes > MAX_KEPT_ARRAY_BYTES and keep:
            self.fail(f"{what} is too long", found=f"{length} elements")
        if keep:
            self.keep(n_bytes, what)
        if code:
            return struct.unpack(f"<{length}{code}", self.take(n_bytes, what))
        strings: list[str] | None = [] if keep else None
        self._strings(length, what, strings)
        return None if strings is None else tuple(strings)

    def _strings(self, length: int, what: str, kept: list[str] | None) -> None:
        """Goes over an array of strings, and keeps them if there is a list to keep them in."""
        # Vocabularies make this the one hot loop: the window is walked without a call per string.
        unpack, start = struct.Struct("<Q").unpack_from, self.position
        while length:
            window = read_exactly(
                self.file, self.position, min(WINDOW_BYTES, self.size - self.position)
            )
            at, n_window = 0, len(window)
            while length and at + 8 <= n_window:
                stop = at + 8 + unpack(window, at)[0]
                if kept is not None:
                    if stop > n_window:
                        break
                    # Vocabularies hold pieces of characters, which are no UTF-8.
                    kept.append(window[at + 8 : stop].decode("utf-8", "surrogateescape"))
                at, length = stop, length - 1
            if at:
                self.skip(at, what)
            elif kept is not None:  # longer than the window, or than the file
                kept.append(self.string(f"a string of {what}", MAX_KEPT_ARRAY_BYTES))
                length -= 1
            else:
                self.cut_short(what, 8 * length)
            if kept is not None:
                self.keep(at, what)
                if self.position - start > MAX_KEPT_ARRAY_BYTES:
                    self.fail(f"{what} is too long", found=f"over {MAX_KEPT_ARRAY_BYTES} bytes")

    def tensors(self, n_tensors: int, alignment: int) -> tuple[dict[str, TensorInfo], int, int]:
        described: list[tuple[str, tuple[int, ...], TensorType, int]] = []
        names: set[str] = set()
        for index in range(n_tensors):
            one = self._tensor(index)
            if one[0] in names:
                self.fail(f"the tensor {one[0]!r} is there twice")
            names.add(one[0])
            described.append(one)
        start = _padded(self.position, alignment)
        offset = end = 0
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, declared in described:
            if declared != offset:  # llama.cpp takes tensors in order and without gaps only
                self.fail(
                    f"the tensor {name!r} lies at the wrong place",
                    found=str(declared),
                    expected=str(offset),
                )
            n_bytes = kind.n_bytes(shape)
            end = offset + n_bytes
            if start + end > self.size:
                self.fail(
                    f"cut short: the tensor {name!r} does not fit",
                    found=f"a file of {self.size} bytes",
                    expected=f"at least {start + end}",
                )
            tensors[name] = TensorInfo(name, shape, kind, start + offset, n_bytes)
            offset = _padded(end, alignment)
        return tensors, start + end, start + offset

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], TensorType, int]:
        name = self.name(f"the name of tensor {index}", MAX_NAME_BYTES)
        what = f"the tensor {name!r}"
        n_dims = self.u32(what)
        if not 1 <= n_dims <= MAX_DIMS:
            self.fail(f"{what} has too many or no dimensions", found=str(n_dims), expected="1 to 4")
        dims = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims, what))
        n_elements = 1
        for dim in dims:
            n_elements *= dim
            if (
                dim == 0 or n_elements > _INT64_MAX // 16
            ):  # 16 bytes is more than any type takes per element
                self.fail(f"{what} has an impossible shape", found=" x ".join(map(str, dims)))
        number = self.u32(what)
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            self.fail(f"{what} is of a type that is not known", found=str(number))
        if dims[0] % kind.block:
            self.fail(
                f"{what} of type {kind.name} has rows that are not whole blocks",
                found=str(dims[0]),
                expected=f"a multiple of {kind.block}",
            )
        return name, tuple(reversed(dims)), kind, self.u64(what)


def _padded(n_bytes: int, alignment: int) -> int:
    return (n_bytes + alignment - 1) // alignment * alignment
