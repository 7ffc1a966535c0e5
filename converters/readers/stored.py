"""Arrays that stay in their file: some rows, some columns or pieces of them, as F32."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.pack_types import F32Array, I64Array, check_finite

BLOCK_BYTES = 8 << 20
"""About as much is held at a time of an array that is read from one end to the other."""

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types that are read, and how numpy sees their bytes (it has no BF16)."""

NO_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)
"""What zipfile raises over the directory of a file that is damaged or no archive."""


class StoredArray(Protocol):
    """An array in a file.

    Attributes:
        shape: slowest dimension first.
        type: as safetensors names it: ``F32``, ``F16``, ``BF16``, or another, which is not read.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...

    def take(self, ids: I64Array, axis: int) -> F32Array:
        """Some rows (axis 0) or columns (axis 1), in their order; of one dimension, elements."""
        ...

    def blocks(self) -> Iterator[tuple[int, F32Array]]:
        """All of it, in pieces along the first axis: (index of the first row, rows)."""
        ...


def as_f32(values: npt.NDArray[Any], type: str) -> F32Array:
    """A copy, exact: every F16 and BF16 number is an F32 number as well."""
    if type == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file it was, and how old, when it was looked at."""

    path: Path
    status: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> Identity:
        """Of an open file."""
        status = os.fstat(file.fileno())
        return cls(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The same file again. It is not held open: a set can have more files than may be open.

        Raises:
            PackError: it is not the same any more.
        """
        with open_regular(self.path, PackError) as file:
            if Identity.of(self.path, file) != self:
                raise PackError("changed while it was read", location=Location(str(self.path)))
            yield file

    def read(self, file: BinaryIO, offset: int, n_bytes: int) -> bytes:
        """That many bytes. Raises PackError if the file has become shorter."""
        data = os.pread(file.fileno(), n_bytes, offset)
        if len(data) < n_bytes:  # cut short, or more than the system gives at a time
            data = bytes(read_exactly(file, offset, n_bytes))
        if len(data) < n_bytes:
            raise PackError("changed while it was read", location=Location(str(self.path)))
        return data


@dataclass(frozen=True, slots=True, eq=False)
class FileArray:
    """An array that lies plainly in a file, row by row; see `StoredArray`.

    Rows are read, not mapped: a column of a mapped array would take a page of memory a number, and
    a file that is cut short while it is mapped would end the process.

    Attributes:
        offset: of its first byte in the file.
    """

    identity: Identity
    offset: int
    shape: tuple[int, ...]
    type: str

    def take(self, ids: I64Array, axis: int) -> F32Array:
        """Some rows, columns or elements."""
        item = np.dtype(FLOATS[self.type])
        row = item.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        first = int(ids[0]) if len(ids) else 0
        in_one = bool(np.array_equal(ids, np.arange(first, first + len(ids))))
        with self.identity.opened() as file:
            if axis == 0:
                if in_one:
                    raw = self.identity.read(file, self.offset + first * row, len(ids) * row)
                else:
                    parts = (self.offset + int(each) * row for each in ids)
                    raw = b"".join([self.identity.read(file, each, row) for each in parts])
                shape: tuple[int, ...] = (len(ids), *self.shape[1:])
            else:
                runs = [(first, len(ids))] if in_one else [(int(each), 1) for each in ids]
                places = [(at * item.itemsize, n * item.itemsize) for at, n in runs]
                rows = range(self.offset, self.offset + self.shape[0] * row, row)
                raw = b"".join(
                    [self.identity.read(file, start + at, n) for start in rows for at, n in places]
                )
                shape = (self.shape[0], len(ids))
        return as_f32(np.frombuffer(raw, item).reshape(shape), self.type)

    def blocks(self) -> Iterator[tuple[int, F32Array]]:
        """From one end to the other."""
        item = np.dtype(FLOATS[self.type])
        shape = self.shape or (1,)
        row = item.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        with self.identity.opened() as file:
            for start, stop in block_rows(shape):
                raw = self.identity.read(file, self.offset + start * row, (stop - start) * row)
                values = np.frombuffer(raw, item).reshape(stop - start, *shape[1:])
                yield start, as_f32(values, self.type)

    def mapped(self) -> npt.NDArray[Any] | None:
        """The array itself, mapped, in its own type; None where it lies askew.

        For arrays that are read again and again from one end to the other, for which reading would
        take as much memory as they are large. Replace such a file by renaming a new one over it.
        """
        item = np.dtype(FLOATS[self.type])
        if self.offset % item.itemsize:
            return None
        with self.identity.opened() as file:
            return np.memmap(file, item, "r", offset=self.offset, shape=self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class MappedArray:
    """An array whose bytes are mapped into memory; see `StoredArray`."""

    values: npt.NDArray[Any]
    type: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def take(self, ids: I64Array, axis: int) -> F32Array:
        """Some rows, columns or elements."""
        part = self.values[ids] if axis == 0 else self.values[:, ids]
        return as_f32(part, self.type)

    def blocks(self) -> Iterator[tuple[int, F32Array]]:
        """From one end to the other."""
        values = self.values if self.shape else self.values.reshape(1)
        for start, stop in block_rows(values.shape):
            yield start, as_f32(values[start:stop], self.type)


@dataclass(frozen=True, slots=True)
class OtherArray:
    """An array of a type that is not read; that it is there is known, and no more."""

    shape: tuple[int, ...]
    type: str

    def take(self, ids: I64Array, axis: int) -> F32Array:
        """Raises PackError; `File.array` has refused it before."""
        raise PackError("an array of a type that is not read", found=self.type)

    def blocks(self) -> Iterator[tuple[int, F32Array]]:
        """Raises PackError, likewise."""
        raise PackError("an array of a type that is not read", found=self.type)


def block_rows(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of runs of rows that take about `BLOCK_BYTES` each."""
    row_bytes = 4 * max(int(np.prod(shape[1:], dtype=np.int64)), 1)
    step = max(BLOCK_BYTES // row_bytes, 1)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file of named arrays, of which nothing is read but its description.

    Attributes:
        metadata: other things that the file says of itself, as text.
    """

    path: Path
    kind: str
    arrays: dict[str, StoredArray]
    metadata: dict[str, str]

    def fail(
        self, message: str, *, found: str | None = None, expected: str | None = None
    ) -> NoReturn:
        """Raise a PackError that lies in this file."""
        location = Location(str(self.path))
        raise PackError(message, location=location, found=found, expected=expected)

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> StoredArray:
        """An array that must be there, hold floating-point numbers and, if given, have that shape.

        Raises:
            PackError: it does not.
        """
        found = self.arrays.get(name)
        if found is None:
            there = ", ".join(sorted(self.arrays)[:12]) or "nothing"
            self.fail(f"{name} is missing", found=there)
        if found.type not in FLOATS:
            self.fail(f"{name} is of a type that is not read", found=found.type, expected="F32")
        if shape is not None and found.shape != shape:
            self.fail(f"{name} has the wrong shape", found=str(found.shape), expected=str(shape))
        return found

    def vector(self, name: str, n: int) -> F32Array:
        """A whole one-dimensional array of that length, finite."""
        values = self.array(name, (n,)).take(np.arange(n), 0)
        self.check(lambda: check_finite(values, name))
        return values

    def scalar(self, name: str) -> float:
        """A number, stored as an array of no dimension or of one element."""
        found = self.array(name)
        if found.shape not in ((), (1,)):
            self.fail(f"{name} is no single number", found=str(found.shape))
        value = next(iter(found.blocks()))[1].reshape(-1)
        self.check(lambda: check_finite(value, name))
        return float(value[0])

    def check(self, checks: Callable[[], None]) -> None:
        """Run a check whose PackError does not know the file yet."""
        try:
            checks()
        except PackError as error:
            error.location = error.location or Location(str(self.path))
            raise
