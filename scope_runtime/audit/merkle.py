"""The Merkle tree of RFC 6962, section 2.1: leaves and nodes, roots, and proofs that a record is in it.

Every hash is 32 bytes of SHA-256. A tree that only grows needs no more than one hash per perfect subtree of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Of a record's line, without its newline; also what the next record names as ``prev``."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree of which only the perfect subtrees are kept: O(log n) memory.

    Args:
        size: leaves that it has already.
        hashes: its perfect subtrees, largest first, one per bit that is set in ``size``.
    """

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if len(hashes) != size.bit_count() or any(len(each) != 32 for each in hashes):
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} subtrees")
        self.size = size
        self._hashes = list(hashes)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def copy(self) -> Tree:
        return Tree(self.size, self._hashes)

    def append(self, leaf: bytes) -> None:
        """Adds a leaf, given as its ``leaf_hash``."""
        size = self.size
        while size & 1:
            leaf = node_hash(self._hashes.pop(), leaf)
            size >>= 1
        self._hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self._hashes:
            return EMPTY_ROOT
        root = self._hashes[-1]
        for left in reversed(self._hashes[:-1]):
            root = node_hash(left, root)
        return root


class Leaves:
    """A tree with its leaves at hand, but for those before ``start``, of which only the subtrees are known."""

    def __init__(self, start: Tree, leaves: Sequence[bytes]) -> None:
        self._start = start.size
        self._leaves = leaves
        self._known: dict[tuple[int, int], bytes] = {}
        at = 0
        for each in start.hashes:
            width = 1 << ((start.size - at).bit_length() - 1)
            self._known[at, at + width] = each
            at += width

    def root(self, low: int, high: int) -> bytes:
        """MTH(D[low:high])."""
        if high == low:
            return EMPTY_ROOT
        known = self._known.get((low, high))
        if known is not None:
            return known
        if high - low == 1:
            return self._leaves[low - self._start]
        middle = low + split(high - low)
        return node_hash(self.root(low, middle), self.root(middle, high))

    def path(self, index: int, size: int) -> list[bytes]:
        """PATH(index, D[0:size]): the siblings from the leaf up."""
        low, high, path = 0, size, []
        while high - low > 1:
            middle = low + split(high - low)
            if index < middle:
                path.append(self.root(middle, high))
                high = middle
            else:
                path.append(self.root(low, middle))
                low = middle
        return path[::-1]


def split(size: int) -> int:
    """The largest power of two smaller than ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that the path leads to; None where its length does not fit. RFC 9162, section 2.1.3.2."""
    if not 0 <= index < size:
        return None
    node, last, root = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            root = node_hash(root, sibling)
        node >>= 1
        last >>= 1
    return root if last == 0 else None
