"""The tree: against the definition of RFC 6962, section 2.1, and against pymerkle."""

from __future__ import annotations

from hashlib import sha256

import pymerkle
import pytest

from scope_runtime.audit.merkle import Leaves, Tree, leaf_hash, root_by_path

DATA = [b"record %d" % n for n in range(130)]
LEAVES = [leaf_hash(each) for each in DATA]


def mth(data: list[bytes]) -> bytes:
    """MTH, word for word."""
    if not data:
        return sha256(b"").digest()
    if len(data) == 1:
        return sha256(b"\x00" + data[0]).digest()
    k = 1
    while k * 2 < len(data):
        k *= 2
    return sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def path(m: int, data: list[bytes]) -> list[bytes]:
    """PATH, word for word."""
    if len(data) == 1:
        return []
    k = 1
    while k * 2 < len(data):
        k *= 2
    if m < k:
        return [*path(m, data[:k]), mth(data[k:])]
    return [*path(m - k, data[k:]), mth(data[:k])]


def test_roots_agree_with_the_definition_and_with_pymerkle() -> None:
    tree, other = Tree(), pymerkle.InmemoryTree(algorithm="sha256")
    # Named get_state before pymerkle 7.
    root_of_other = getattr(other, "get_root", None) or other.get_state
    assert tree.root() == mth([])
    for n, data in enumerate(DATA, 1):
        tree.append(leaf_hash(data))
        other.append_entry(data)
        assert tree.root() == mth(DATA[:n]) == root_of_other()
        assert Tree(tree.size, tree.hashes).root() == tree.root()


@pytest.mark.parametrize("first", [0, 1, 5, 32, 37])
def test_paths_agree_where_the_first_records_are_gone(first: int) -> None:
    start = Tree()
    for leaf in LEAVES[:first]:
        start.append(leaf)
    for size in range(first + 1, 70):
        leaves = Leaves(start, LEAVES[first:size])
        assert leaves.root(0, size) == mth(DATA[:size])
        for index in range(first, size):
            found = leaves.path(index, size)
            assert found == path(index, DATA[:size])
            assert root_by_path(LEAVES[index], index, size, found) == mth(DATA[:size])


def test_a_path_proves_nothing_else() -> None:
    size, leaves, root = 45, Leaves(Tree(), LEAVES), mth(DATA[:45])
    for index in range(size):
        good = leaves.path(index, size)
        others = [root_by_path(LEAVES[index], at, size, good) for at in range(-1, size + 2)]
        assert others.count(root) == 1
        assert root_by_path(LEAVES[index + 1], index, size, good) != root
        assert root_by_path(LEAVES[index], index, size, good[:-1]) != root
        assert root_by_path(LEAVES[index], index, size, [*good, root]) != root


def test_a_tree_of_the_wrong_subtrees_is_refused() -> None:
    with pytest.raises(ValueError, match="a tree of 3 leaves has 2 subtrees"):
        Tree(3, [bytes(32)])
