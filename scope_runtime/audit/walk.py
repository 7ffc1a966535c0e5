"""Following a log's chain, line by line: what is verified, and what is gone through when a log is opened."""

from __future__ import annotations

import copy
from typing import Any

from scope_runtime.audit.canonical import CHAIN
from scope_runtime.audit.merkle import Tree, leaf_hash
from scope_runtime.audit.segments import Header, parse_line


class Broken(Exception):
    """A record that cannot stand where it stands.

    Attributes:
        index: of the first record that is not as it should be.
        what: in words, to follow the record's number.
        prev: whether it is the hash of the record before that does not fit: then either of the two was changed.
    """

    def __init__(self, index: int, what: str, *, prev: bool = False) -> None:
        super().__init__(f"record {index} {what}")
        self.index = index
        self.what = what
        self.prev = prev


class Walk:
    """Where one has come to in a log.

    Attributes:
        tree: of the records so far; its size is the next record's index.
        prev: hash of the last record.
        header: of the segment one is in.
    """

    def __init__(self) -> None:
        self.tree = Tree()
        self.prev: bytes | None = None
        self.header: Header | None = None
        self._between = True

    def copy(self) -> Walk:
        other = copy.copy(self)
        other.tree = self.tree.copy()
        return other

    def begin_segment(self) -> None:
        """The next line must be a segment's first."""
        self._between = True

    def take(self, line: bytes) -> dict[str, Any]:
        """The next line, with its newline, as a record.

        Raises:
            Broken: it is not the record that follows. Nothing has changed then.
        """
        index = self.tree.size
        record = parse_line(line)
        if record is None:
            raise Broken(index, "is no JSON object")
        chain = record.get(CHAIN)
        if not isinstance(chain, dict) or not isinstance(chain.get("index"), int):
            raise Broken(index, "has no place in a chain")
        if self._between:
            self._take_header(record, chain)
            index = self.tree.size
        if chain["index"] > index:
            raise Broken(index, f"is missing: record {chain['index']} stands in its place")
        if chain["index"] < index:
            raise Broken(index, f"is not in its place: record {chain['index']} stands there again")
        if chain.get("prev") != (self.prev.hex() if self.prev is not None else None):
            raise Broken(index, "does not follow the record before it", prev=True)
        self._between = False
        self.prev = leaf_hash(line[:-1])
        self.tree.append(self.prev)
        return record

    def follows(self, line: bytes, after: bytes) -> bool:
        """Whether ``after`` names ``line`` as the record before it: then ``line`` is as it was written."""
        record = parse_line(after)
        chain = record.get(CHAIN) if record else None
        return isinstance(chain, dict) and chain.get("prev") == leaf_hash(line[:-1]).hex()

    def _take_header(self, record: dict[str, Any], chain: dict[str, Any]) -> None:
        index = self.tree.size
        header = Header.of(record)
        if header is None:
            # A log that begins with record 1 has lost record 0.
            first = index if self.header is not None else max(0, chain["index"] - 1)
            raise Broken(first, "is no beginning of a segment")
        if self.header is None:
            # What was before is not here. The header says it, and a checkpoint says whether that is true.
            try:
                self.prev = bytes.fromhex(chain["prev"]) if header.tree.size else None
            except (KeyError, TypeError, ValueError):
                raise Broken(header.tree.size, "has no place in a chain") from None
            self.tree = header.tree.copy()
        elif header.origin != self.header.origin:
            raise Broken(index, f"is of another log: {header.origin}, not {self.header.origin}")
        elif header.tree.size > index:
            raise Broken(index, f"is missing: the next segment begins with {header.tree.size}")
        elif header.number != self.header.number + 1 or header.tree.hashes != self.tree.hashes:
            raise Broken(index, f"begins segment {header.number}, which does not follow")
        self.header = header
