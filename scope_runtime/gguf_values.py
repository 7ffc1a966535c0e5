"""Keys of a GGUF header by type: a missing key, or one of another type, is an error in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from scope_runtime.errors import Location, ScopeError
from scope_runtime.gguf_check import Header, Scalar


@dataclass(frozen=True, slots=True)
class Keys:
    """Typed access to `Header.values`; errors are of the class ``error``."""

    header: Header
    error: type[ScopeError]

    def fail(
        self, message: str, *, found: str | None = None, expected: str | None = None
    ) -> NoReturn:
        """Raise an error that lies in this file."""
        raise self.error(
            message, location=Location(self.header.path), found=found, expected=expected
        )

    def text(self, key: str) -> str:
        """A string that must be there."""
        value = self.optional_text(key)
        if value is None:
            self.fail(f"the key {key!r} is missing")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None."""
        value = self.header.values.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(f"the key {key!r} is no string", found=repr(value)[:80])
        return value

    def integer(self, key: str) -> int:
        """A whole number that must be there."""
        value = self.optional_integer(key)
        if value is None:
            self.fail(f"the key {key!r} is missing")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number, or None."""
        value = self.header.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"the key {key!r} is no whole number", found=repr(value)[:80])
        return value

    def array(self, key: str) -> tuple[Scalar, ...] | None:
        """An array that was asked for when the header was read, or None."""
        value = self.header.values.get(key)
        if value is not None and not isinstance(value, tuple):
            self.fail(f"the key {key!r} is no array", found=repr(value)[:80])
        return value

    def integers(self, key: str) -> list[int]:
        """An array of whole numbers of up to 62 bits, that must be there."""
        value = self.array(key)
        if value is None:
            self.fail(f"the key {key!r} is missing")
        numbers = [each for each in value if isinstance(each, int) and abs(each) < 1 << 62]
        if len(numbers) != len(value) or any(isinstance(each, bool) for each in value):
            self.fail(f"the key {key!r} is no array of whole numbers")
        return numbers

    def floats(self, key: str) -> tuple[float, ...]:
        """An array of floating-point numbers; empty if it is not there."""
        value = self.array(key) or ()
        numbers = tuple(each for each in value if isinstance(each, float))
        if len(numbers) != len(value):
            self.fail(f"the key {key!r} is no array of F32")
        return numbers

    def texts(self, key: str) -> tuple[str, ...] | None:
        """An array of strings, or None."""
        value = self.array(key)
        if value is None:
            return None
        strings = tuple(each for each in value if isinstance(each, str))
        if len(strings) != len(value):
            self.fail(f"the key {key!r} is no array of strings")
        return strings
