"""Records as bytes: canonical JSON (RFC 8785), so that a record has one spelling and one hash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from scope_runtime.errors import AuditError

CHAIN = "chain"
"""The key under which a record says its index and the hash of the record before it."""

MAX_INTEGER = 2**53 - 1
"""RFC 8785 knows only what an IEEE double holds exactly."""


def canonical(record: Mapping[str, Any]) -> bytes:
    """The record's canonical form, without a newline (JSON escapes those inside of strings).

    What RFC 8785 cannot say is said otherwise: integers beyond ±(2^53 - 1) as decimal strings, infinities and NaN as
    null, bytes of a file name that are no UTF-8 as U+FFFD.

    Raises:
        AuditError: a value or key that JSON has no form for.
    """
    try:
        return rfc8785.dumps(record)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        # Hardly ever: only then is each value looked at in Python.
        pass
    try:
        return rfc8785.dumps(_sayable(record))
    except rfc8785.CanonicalizationError as error:
        raise AuditError("an event cannot be written as JSON", found=str(error)) from None


def _sayable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_sayable(key): _sayable(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_sayable(each) for each in value]
    return value


class Body:
    """A record that waits for its place in the chain: canonical already, so that only its place has to be put in.

    Attributes:
        openings: lines for the side file, on the disk no later than the record.
    """

    __slots__ = ("_after", "_before", "openings")

    def __init__(self, record: Mapping[str, Any], openings: tuple[bytes, ...] = ()) -> None:
        """Raises: AuditError, as of ``canonical``."""
        self.openings = openings
        if CHAIN in record:
            raise AuditError(f"an event cannot have the key {CHAIN}", found=str(record[CHAIN]))
        # RFC 8785 sorts keys by their UTF-16 units; against ASCII letters alone any order of Unicode is the same.
        before = canonical({k: v for k, v in record.items() if k < CHAIN})[1:-1]
        after = canonical({k: v for k, v in record.items() if k > CHAIN})[1:-1]
        self._before = b"{" + before + b"," if before else b"{"
        self._after = b"," + after + b"}" if after else b"}"

    def line(self, index: int, prev: bytes | None) -> bytes:
        """The record at its place, without a newline.

        Args:
            index: of the record in the log, from 0.
            prev: ``leaf_hash`` of the record before; None for the log's first.
        """
        named = b'"%s"' % prev.hex().encode() if prev is not None else b"null"
        place = b'"%s":{"index":%d,"prev":%s}' % (CHAIN.encode(), index, named)
        return self._before + place + self._after
