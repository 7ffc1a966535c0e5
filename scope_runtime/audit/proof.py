"""That one record is in a log, shown without the others: c2sp.org/tlog-proof."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

from scope_runtime.audit.merkle import Leaves, Tree, leaf_hash, root_by_path
from scope_runtime.audit.note import Checkpoint
from scope_runtime.audit.recover import read_checkpoint
from scope_runtime.audit.segments import LogFiles, read_lines
from scope_runtime.audit.walk import Broken, Walk
from scope_runtime.errors import AuditError, Location, UsageError

FIRST_LINE = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class Proof:
    """A record, where it stands, and the way from there to the checkpoint's root.

    Attributes:
        line: the record's line, without a newline. The format calls it extra data.
        index: of the record in the log.
        path: hashes of the siblings, from the leaf up.
        checkpoint: of the tree that the path leads through.
    """

    line: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint

    @property
    def holds(self) -> bool:
        """Whether the path leads from the record to the root; the signature is for a key to check."""
        size = self.checkpoint.size
        root = root_by_path(leaf_hash(self.line), self.index, size, self.path)
        return root == self.checkpoint.root

    @property
    def text(self) -> str:
        lines = [FIRST_LINE, f"extra {b64encode(self.line).decode()}", f"index {self.index}"]
        lines += [b64encode(each).decode() for each in self.path]
        return "\n".join([*lines, "", self.checkpoint.note])

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Raises: AuditError."""
        head, _, note = text.partition("\n\n")
        try:
            first, extra, index, *path = head.split("\n")
            if first != FIRST_LINE or not extra.startswith("extra ") or index[:6] != "index ":
                raise ValueError
            hashes = tuple(b64decode(each, validate=True) for each in path)
            line = b64decode(extra[6:], validate=True)
            if any(len(each) != 32 for each in hashes) or not index[6:].isdecimal():
                raise ValueError
            return cls(line, int(index[6:]), hashes, Checkpoint.parse(note))
        except ValueError:
            raise AuditError(
                "this is no proof of a record", expected=f"a file that begins with {FIRST_LINE}"
            ) from None


def prove(files: LogFiles, index: int) -> Proof:
    """Shows that the record is under the log's newest checkpoint.

    Raises:
        UsageError: there is no checkpoint, or the record is not under it or not here any more.
        AuditError: the log is not sound.
    """
    checkpoint = read_checkpoint(files.checkpoint)
    if checkpoint is None:
        raise UsageError("there is no checkpoint to prove it against", found=str(files.checkpoint))
    walk, start, leaves, wanted = Walk(), Tree(), list[bytes](), b""
    for path in files.segments():
        walk.begin_segment()
        for number, line in enumerate(read_lines(path), 1):
            if walk.tree.size == checkpoint.size or not line.endswith(b"\n"):
                break
            try:
                record = walk.take(line)
            except Broken as broken:
                where = Location(str(path), number)
                raise AuditError(
                    "the log does not verify", location=where, found=str(broken)
                ) from None
            if not leaves and walk.header is not None:
                start = walk.header.tree.copy()
            leaves.append(leaf_hash(line[:-1]))
            if _index(record) == index:
                wanted = line[:-1]
    if not wanted:
        first = start.size
        raise UsageError(
            f"record {index} is not here, or not under the checkpoint",
            expected=f"an index from {first} to {checkpoint.size - 1}",
        )
    tree = Leaves(start, leaves)
    proof = Proof(wanted, index, tuple(tree.path(index, checkpoint.size)), checkpoint)
    if not proof.holds:
        raise AuditError(
            "the log is not the one that its checkpoint is of", location=Location(str(files.path))
        )
    return proof


def _index(record: dict[str, Any]) -> int:
    return int(record["chain"]["index"])
