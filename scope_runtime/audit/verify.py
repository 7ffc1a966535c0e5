"""Whether a log is whole: from its files and a public key alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scope_runtime.audit.canonical import CHAIN
from scope_runtime.audit.merkle import Tree, leaf_hash
from scope_runtime.audit.note import Checkpoint, PublicKey
from scope_runtime.audit.recover import read_checkpoint
from scope_runtime.audit.report import Bad, Report
from scope_runtime.audit.segments import RESUMED, Damaged, LogFiles, parse_line, read_lines
from scope_runtime.audit.verify_contents import ContentsCheck
from scope_runtime.audit.walk import Broken, Walk
from scope_runtime.errors import AuditError


def verify(
    files: LogFiles,
    *,
    keys: Iterable[PublicKey] = (),
    checkpoints: Iterable[Checkpoint] = (),
    partial: bool = False,
    contents: bool = True,
) -> Report:
    """Goes through a log from its first record to its last.

    Args:
        keys: one of them must have signed the log's checkpoint and those between its segments.
        checkpoints: kept elsewhere; the log must still be the one that they are of.
        partial: earlier segments may be missing without a record that says why.
        contents: look at prompts and outputs beside the log too; without, this may be a copy that has none.

    Raises:
        AuditError: a file cannot be read.
    """
    beside = ContentsCheck(files) if contents else None
    return _Verification(files, tuple(keys), tuple(checkpoints), partial, beside).run()


class _Verification:
    def __init__(
        self,
        files: LogFiles,
        keys: tuple[PublicKey, ...],
        checkpoints: tuple[Checkpoint, ...],
        partial: bool,
        beside: ContentsCheck | None,
    ) -> None:
        self.files, self.keys, self.kept, self.partial = files, keys, checkpoints, partial
        self.report = Report(str(files.path))
        self.beside = beside
        self.walk = Walk()
        self.expired: list[tuple[int, int]] = []
        self.before_last: tuple[int, tuple[bytes, ...]] = (0, ())
        self.wanted: dict[int, list[Checkpoint]] = {}

    def run(self) -> Report:
        report = self.report
        report.bad = self._own_checkpoint() or self._segments() or self._end() or self._contents()
        report.n_records = self.walk.tree.size
        report.root = self.walk.tree.root().hex()
        report.origin = self.walk.header.origin if self.walk.header else None
        return report

    def _own_checkpoint(self) -> Bad | None:
        """Takes in the checkpoints that the log has to meet on its way."""
        report, path = self.report, self.files.checkpoint
        try:
            own = read_checkpoint(path)
        except AuditError as error:
            return Bad(None, str(path), 0, f"{error.message}; found {error.found}")
        if own is None:
            if self.keys and not any(map(self._signed, self.kept)):
                return Bad(None, str(path), 0, "there is no checkpoint, so nothing is signed")
            if not self.kept:
                report.remarks.append(
                    "there is no checkpoint: records missing at the end go unseen"
                )
        else:
            if self.keys and not self._signed(own):
                return Bad(None, str(path), 0, "is not signed by the public key")
            report.signed_by, report.checked = own.signers, bool(self.keys)
            if not own.signed:
                report.remarks.append("the checkpoint is unsigned: it shows damage, not forgery")
            elif not self.keys:
                report.remarks.append("signatures were not checked: no public key was given")
        for each in (*self.kept, *([own] if own else [])):
            self.wanted.setdefault(each.size, []).append(each)
        return None

    def _signed(self, checkpoint: Checkpoint) -> bool:
        return any(key.signed(checkpoint.note) for key in self.keys)

    def _segments(self) -> Bad | None:
        segments = self.files.segments()
        for path in segments:
            self.report.n_segments += 1
            self.walk.begin_segment()
            bad = self._segment(path, last=path == segments[-1])
            if bad is not None:
                return bad
            if self.beside is not None:
                self.beside.end_segment(self.walk.header.number if self.walk.header else None)
        return None

    def _contents(self) -> Bad | None:
        if self.beside is None:
            return None
        found = self.beside.end(self._expired_before(), self._vouched())
        report = self.report.contents = self.beside.report
        if report.n_unknown:
            self.report.remarks.append(
                f"{report.n_unknown} lines beside the log open no record of it: a crash, not mended yet"
            )
        return found

    def _segment(self, path: Path, *, last: bool) -> Bad | None:
        number = 0
        try:
            for number, (before, line, after) in enumerate(_neighbours(path), 1):
                if not line.endswith(b"\n"):
                    if not last or path != self.files.path:
                        return Bad(self.walk.tree.size, str(path), number, "is cut off")
                    self.report.torn_bytes = len(line)
                    return None
                bad = self._line(path, number, before, line, after)
                if bad is not None:
                    return bad
        except Damaged as error:
            return Bad(
                self.walk.tree.size, str(path), number + 1, f"{error.message}: {error.found}"
            )
        return None

    def _line(
        self, path: Path, number: int, before: bytes | None, line: bytes, after: bytes | None
    ) -> Bad | None:
        first = self.walk.header is None
        size, hashes = self.walk.tree.size, self.walk.tree.hashes
        try:
            record = self.walk.take(line)
        except Broken as broken:
            index, what = broken.index, broken.what
            if broken.prev and before is not None and self._intact(line, after):
                # What comes after this record knows it; so it was the one before that was changed.
                index, what, number = index - 1, "was changed", number - 1
            return Bad(index, str(path), number, what)
        if self.walk.header is not None and (first or record.get("what") == "segment"):
            bad = self._begins(path, number)
            if bad is not None:
                return bad
        self.before_last = (size, hashes)
        self._remember(record)
        if self.beside is not None:
            self.beside.take(record, self.walk.tree.size - 1, path, number)
        return self._meets(path, number)

    def _intact(self, line: bytes, after: bytes | None) -> bool:
        """Whether a record that does not follow the one before it is as it was written all the same.

        What comes after it knows it; and after the last one, a checkpoint: with the hash that it names in the place
        of the one before it, the root is right.
        """
        if after is not None:
            return self.walk.follows(line, after)
        tree = Tree(*self.before_last)
        try:
            tree.append(bytes.fromhex((parse_line(line) or {})[CHAIN]["prev"]))
            tree.append(leaf_hash(line[:-1]))
        except (KeyError, TypeError, ValueError):
            return False
        return any(each.root == tree.root() for each in self.wanted.get(tree.size, ()))

    def _begins(self, path: Path, number: int) -> Bad | None:
        """A segment's first record: its tree head is right, and signed."""
        header = self.walk.header
        if header is None or number != 1:
            return None
        if self.report.n_segments == 1:
            self.report.first = header.tree.size
        if header.checkpoint is None:
            return None
        index = header.tree.size
        try:
            checkpoint = Checkpoint.parse(header.checkpoint)
        except AuditError:
            return Bad(index, str(path), number, "has no sound checkpoint in it")
        if (checkpoint.origin, checkpoint.size) != (header.origin, header.tree.size) or (
            checkpoint.root != header.tree.root()
        ):
            return Bad(index, str(path), number, "has a checkpoint in it that is not of this log")
        if self.keys and checkpoint.signed and not self._signed(checkpoint):
            return Bad(index, str(path), number, "has a checkpoint in it that the key did not sign")
        return None

    def _remember(self, record: dict[str, Any]) -> None:
        if record.get("kind") != "runtime":
            return
        what = record.get("what")
        if what == "repaired":
            self.report.repaired += 1
        elif what == "dropped" and isinstance(record.get("n_events"), int):
            self.report.dropped += record["n_events"]
        elif what == "expired" and isinstance(record.get("before"), int):
            self.expired.append((self.walk.tree.size - 1, record["before"]))
        elif what == RESUMED:
            self._resumed(record)

    def _resumed(self, record: dict[str, Any]) -> None:
        signed, found = record.get("signed"), record.get("found")
        if isinstance(signed, int) and isinstance(found, int):
            self.report.n_resumed += 1
            self.report.n_unsigned_before += max(0, found - signed)

    def _vouched(self) -> int:
        """Records before this one are under a checkpoint; all, where there is none.

        What lies behind it anybody can have put there: such a record is no excuse for what is missing.
        """
        return self.report.covered if self.wanted else self.walk.tree.size

    def _expired_before(self) -> int:
        vouched = self._vouched()
        return max((before for index, before in self.expired if index < vouched), default=0)

    def _meets(self, path: Path, number: int) -> Bad | None:
        """Where a checkpoint is of as many records: it is of these."""
        tree, header = self.walk.tree, self.walk.header
        for checkpoint in self.wanted.get(tree.size, ()):
            if header is not None and checkpoint.origin != header.origin:
                what = f"is of the log {header.origin}, the checkpoint of {checkpoint.origin}"
                return Bad(tree.size - 1, str(path), number, what)
            if checkpoint.root != tree.root():
                since = max(self.report.covered, self.report.first)
                what = "is not what the checkpoint covers"
                if since < tree.size - 1:
                    what += (
                        f": it was changed, or all since a record from {since} on were written anew"
                    )
                return Bad(tree.size - 1, str(path), number, what)
            self.report.covered = tree.size
        return None

    def _end(self) -> Bad | None:
        report, size = self.report, self.walk.tree.size
        last = str(self.files.path)
        for checkpoint in (each for at in sorted(self.wanted) for each in self.wanted[at]):
            if checkpoint.size > size:
                what = f"is missing: the checkpoint is of {checkpoint.size} records"
                return Bad(size, last, 0, what)
            if checkpoint.size < report.first:
                report.remarks.append(
                    f"a checkpoint of {checkpoint.size} records is older than what is here"
                )
        if self.walk.header is None:
            return (
                Bad(0, last, 0, "is missing: the log is empty") if not report.torn_bytes else None
            )
        expired_before = self._expired_before()
        if report.first > expired_before and not self.partial:
            what = f"is missing, up to {report.first - 1}, and no record under a checkpoint says that it has expired"
            return Bad(expired_before, last, 0, what)
        if report.covered < size and self.wanted:
            report.remarks.append(
                f"the last {size - report.covered} records are not under a checkpoint yet"
            )
        if report.torn_bytes:
            report.remarks.append(
                f"the last {report.torn_bytes} bytes are a torn record: a crash, not mended yet"
            )
        return None


def _neighbours(path: Path) -> Iterator[tuple[bytes | None, bytes, bytes | None]]:
    """Each line with the one before and the one after it."""
    before: bytes | None = None
    line: bytes | None = None
    for after in read_lines(path):
        if line is not None:
            yield before, line, after
            before = line
        line = after
    if line is not None:
        yield before, line, None
