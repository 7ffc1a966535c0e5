"""What a log was left like: gone through when it is opened to be written on."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from scope_runtime.audit.contents import redacted_in, sealed_in
from scope_runtime.audit.merkle import Tree
from scope_runtime.audit.note import Checkpoint
from scope_runtime.audit.segments import Header, LogFiles, read_lines
from scope_runtime.audit.walk import Broken, Walk
from scope_runtime.errors import AuditError, Location

_HINT = "Keep its files as they are, look with scope audit verify, and begin another log"


@dataclass(frozen=True, slots=True)
class Found:
    """Where to go on.

    Attributes:
        tree: of all records.
        prev: hash of the last record.
        size: bytes of the open segment that are whole records.
        header: of the open segment; None where it has none yet.
        next_number: of the open segment.
        origin: the log's name; None where the log is new.
        checkpointed: records under the checkpoint.
        torn: what stands behind the last whole record.
        sealed: commitments in the open segment.
        redacted: commitments that the last segment says were redacted.
        met: checkpoints that these records are under: that beside the log, and that in the segment's first record.
            Whether they are signed is for a key to say.
    """

    tree: Tree
    prev: bytes | None
    size: int
    header: Header | None
    next_number: int
    origin: str | None
    checkpointed: int
    torn: bytes
    sealed: frozenset[str]
    redacted: frozenset[str]
    met: tuple[Checkpoint, ...]

    @property
    def torn_digest(self) -> str:
        return sha256(self.torn).hexdigest()


def recover(files: LogFiles) -> Found:
    """Goes through the last segment.

    Raises:
        AuditError: it is not as a writer leaves it, crashed or not.
    """
    checkpoint = read_checkpoint(files.checkpoint)
    walk, size, torn = Walk(), 0, b""
    sealed: set[str] = set()
    redacted: set[str] = set()
    met: list[Checkpoint] = []
    if files.path.exists():
        size, torn = _through(files.path, walk, checkpoint, sealed, redacted, met)
    header = walk.header
    closed = files.closed()
    last = max(closed, default=-1)
    if header is not None and last >= header.number:
        raise AuditError(
            "the open segment is older than a closed one",
            location=Location(str(files.path)),
            found=f"{closed[last].name} beside segment {header.number}",
            hint=_HINT,
        )
    if header is None and closed:
        # A crash in the middle of a rotation: the next segment has not begun.
        _, rest = _through(closed[last], walk, checkpoint, set(), redacted, met)
        if rest or walk.header is None:
            raise AuditError(
                "a closed segment is cut off", location=Location(str(closed[last])), hint=_HINT
            )
    if checkpoint is not None and checkpoint.size > walk.tree.size:
        raise AuditError(
            f"the audit log {files.path} was cut off",
            found=f"{walk.tree.size} records",
            expected=f"at least {checkpoint.size}, as {files.checkpoint.name} says",
            hint=_HINT,
        )
    return Found(
        tree=walk.tree,
        prev=walk.prev,
        size=size,
        header=header,
        next_number=header.number if header is not None else last + 1,
        origin=walk.header.origin if walk.header is not None else None,
        checkpointed=checkpoint.size if checkpoint is not None else 0,
        torn=torn,
        sealed=frozenset(sealed),
        redacted=frozenset(redacted),
        met=tuple(met),
    )


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a file; None where there is no such file.

    Raises:
        AuditError: it cannot be read, or is none.
    """
    try:
        return Checkpoint.parse(path.read_bytes().decode())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError("cannot be read", location=Location(str(path)), found=str(error)) from None
    except AuditError as error:
        error.location = Location(str(path))
        raise


def _through(
    path: Path,
    walk: Walk,
    checkpoint: Checkpoint | None,
    sealed: set[str],
    redacted: set[str],
    met: list[Checkpoint],
) -> tuple[int, bytes]:
    """(bytes of whole records, torn bytes behind them); adds the commitments and checkpoints that are met."""
    size = 0
    number = 0
    for number, line in enumerate(read_lines(path), 1):
        if not line.endswith(b"\n"):
            return size, line
        try:
            record = walk.take(line)
        except Broken as broken:
            raise AuditError(
                "the audit log cannot be continued",
                location=Location(str(path), number),
                found=str(broken),
                hint=_HINT,
            ) from None
        size += len(line)
        sealed |= {each.text for each in sealed_in(record)}
        redacted |= redacted_in(record)
        if number == 1 and walk.header is not None:
            met += _checkpoint_in(walk.header)
        if checkpoint is not None and checkpoint.size == walk.tree.size:
            if checkpoint.root != walk.tree.root():
                raise AuditError(
                    "the audit log is not the one that its checkpoint is of",
                    location=Location(str(path), number),
                    hint=_HINT,
                )
            met.append(checkpoint)
    return size, b""


def _checkpoint_in(header: Header) -> list[Checkpoint]:
    """The checkpoint in a segment's first record, if it is of the records before that segment."""
    try:
        found = Checkpoint.parse(header.checkpoint or "")
    except AuditError:
        return []
    same = (found.size, found.root) == (header.tree.size, header.tree.root())
    return [found] if same else []
