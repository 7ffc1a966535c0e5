"""Bytes of a file that is not trusted: never asked for beyond its end, never kept without bound."""

from __future__ import annotations

import os
from typing import BinaryIO, NoReturn

from scope_runtime.errors import Location, ScopeError
from scope_runtime.files import read_exactly

MAX_KEPT_BYTES = 64 << 20  # of values in all; real models have up to 5 MB, most of it vocabulary
WINDOW_BYTES = 1 << 18


class ByteReader:
    """A position in an open file, and a window of bytes around it; little-endian.

    Attributes:
        size: of the file.
        position: of the next byte.
    """

    def __init__(self, file: BinaryIO, path: str, error: type[ScopeError]) -> None:
        self.file, self.path, self.error = file, path, error
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._kept_bytes = 0
        self._window = bytearray()
        self._window_start = 0

    def fail(
        self, message: str, *, found: str | None = None, expected: str | None = None
    ) -> NoReturn:
        """Raise an error that lies in this file."""
        raise self.error(message, location=Location(self.path), found=found, expected=expected)

    def cut_short(self, what: str, n_bytes: int) -> NoReturn:
        """Raise: the file ends before the next ``n_bytes`` bytes."""
        self.fail(
            f"cut short in {what}",
            found=f"a file of {self.size} bytes",
            expected=f"at least {self.position + n_bytes}",
        )

    def take(self, n_bytes: int, what: str) -> memoryview:
        """The next bytes. Their number is checked against the file before anything is read."""
        if n_bytes > self.size - self.position:
            self.cut_short(what, n_bytes)
        start = self.position - self._window_start
        if not 0 <= start <= len(self._window) - n_bytes:
            wanted = min(max(n_bytes, WINDOW_BYTES), self.size - self.position)
            self._window = read_exactly(self.file, self.position, wanted)
            self._window_start, start = self.position, 0
            if len(self._window) < n_bytes:
                self.fail("changed while it was read")
        self.position += n_bytes
        return memoryview(self._window)[start : start + n_bytes]

    def skip(self, n_bytes: int, what: str) -> None:
        """Go on by that many bytes, if the file has them."""
        if n_bytes > self.size - self.position:
            self.cut_short(what, n_bytes)
        self.position += n_bytes

    def u32(self, what: str) -> int:
        """An unsigned 32-bit number."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """An unsigned 64-bit number."""
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str, max_bytes: int) -> str:
        """A string: its length, then UTF-8."""
        n_bytes = self.u64(what)
        if n_bytes > max_bytes:
            self.fail(
                f"{what} is too long", found=f"{n_bytes} bytes", expected=f"at most {max_bytes}"
            )
        self.keep(n_bytes, what)
        raw = bytes(self.take(n_bytes, what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8", found=repr(raw[:40]))

    def keep(self, n_bytes: int, what: str) -> None:
        """Count what is kept in memory, and stop where it becomes too much."""
        self._kept_bytes += n_bytes
        if self._kept_bytes > MAX_KEPT_BYTES:
            self.fail(f"too many values, up to {what}", expected=f"at most {MAX_KEPT_BYTES} bytes")

    def name(self, what: str, max_bytes: int) -> str:
        """A string without NUL, at which llama.cpp would end it: two names could become one."""
        name = self.string(what, max_bytes)
        if "\0" in name:
            self.fail(f"{what} holds a NUL", found=repr(name[:80]))
        return name
