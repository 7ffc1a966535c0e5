"""The log's files as one writer sees them: appending, rotating, checkpoints, retention. Not for several threads."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from scope_runtime.audit.canonical import Body
from scope_runtime.audit.housekeeping import Expired, Housekeeper, expired
from scope_runtime.audit.lock import LogLock
from scope_runtime.audit.merkle import leaf_hash
from scope_runtime.audit.note import Checkpoint, SigningKey
from scope_runtime.audit.openings import OpeningsFile, erase, sync, sync_folder, tidy
from scope_runtime.audit.options import AuditOptions
from scope_runtime.audit.recover import Found, recover
from scope_runtime.audit.segments import RESUMED, SEGMENT, Header, LogFiles
from scope_runtime.errors import AuditError
from scope_runtime.events import Event, Kind
from scope_runtime.files import written_whole

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_MOST_DRIFT_S = 3600.0  # how far a clock that is merely corrected moves, at most


class NoSpaceError(AuditError):
    """Nothing was written and nothing is lost but what was to be written: it may be tried again."""


def own_record(what: str, time: float, **detail: object) -> Body:
    """What the log says itself."""
    return Body(Event(kind=Kind.RUNTIME, what=what, time=time, detail=detail).record())


def since_boot() -> float:
    """Seconds, those asleep among them, by a clock that nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Store:
    """Opens or begins a log, and repairs a torn end.

    Args:
        clock: seconds since the epoch.
        steady: seconds since some moment, by a clock that nobody can set.

    Raises:
        AuditError: the log cannot be opened, is held by somebody else, or is not as it was left.
    """

    def __init__(
        self,
        options: AuditOptions,
        key: SigningKey | None,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = since_boot,
    ) -> None:
        self.files = LogFiles(Path(options.path).absolute())
        self._options = options
        self._key = key
        self._clock = clock
        self._steady = steady
        self._opened_at = (clock(), steady())
        self._fd = -1
        self._beside: OpeningsFile | None = None
        self._dead: str | None = None
        self._checkpointed_at = clock()
        self._notes: list[Body] = []
        self._old: Expired | None = None
        self._rotated = False
        self._new_name = False
        path = self.files.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AuditError(f"the audit log {path} cannot be opened", found=str(error)) from error
        self._lock = LogLock(self.files.lock, path, clock())
        self._housekeeper = Housekeeper(self.files, compress=options.compress)
        try:
            self._open()
        except OSError as error:
            self.close()
            raise AuditError(f"the audit log {path} cannot be opened", found=str(error)) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self.files.path.exists():
            self._fd = os.open(self.files.path, os.O_RDWR | os.O_CLOEXEC)
            self._lock.hold(self._fd, self.files.path)
        found = recover(self.files)
        self._tree, self._prev, self._size = found.tree, found.prev, found.size
        self._header, self._number = found.header, found.next_number
        self._origin = found.origin or self._new_origin()
        self._checkpointed = found.checkpointed
        if found.torn:
            self.note(
                "repaired",
                n_bytes=len(found.torn),
                sha256=found.torn_digest,
                reason="the last record was torn: it was being written when the process ended",
            )
        self._say_what_is_unsigned(found)
        n_lost = tidy(self.files, self._number, found.sealed)
        if n_lost:
            reason = "their records were being written when the process ended"
            self.note("contents-repaired", n_openings=n_lost, reason=reason)
        self._find_expired()
        if self._notes or self._rotation_due():
            self.append(())
        else:
            self._housekeeper.start(())
        if found.redacted and self._checkpointed_all():
            erase(self.files, found.redacted)  # which a crash may have come in the way of

    def _say_what_is_unsigned(self, found: Found) -> None:
        """What nobody signed before may have been changed while no process ran; from now on it will be signed."""
        if self._key is None:
            return
        public = self._key.public
        signed = max((each.size for each in found.met if public.signed(each.note)), default=0)
        if signed < found.tree.size:
            self.note(
                RESUMED,
                signed=signed,
                found=found.tree.size,
                reason="the process before ended without a checkpoint of this key",
            )

    def _new_origin(self) -> str:
        named = self._options.origin or (self._key.name if self._key else None)
        return named or f"scope-runtime/audit/{secrets.token_hex(8)}"

    @property
    def n_records(self) -> int:
        return self._tree.size

    @property
    def dead(self) -> bool:
        """Whether an error was final."""
        return self._dead is not None

    def note(self, what: str, **detail: object) -> None:
        """Puts a record of the log's own before the next ones that are appended."""
        self._notes.append(own_record(what, self._clock(), **detail))

    def append(self, bodies: Sequence[Body]) -> None:
        """Writes records, all or none; they are on the disk when this returns.

        Raises:
            NoSpaceError: the disk is full. Nothing was written.
            AuditError: anything else, and it is final.
        """
        if self._dead:
            raise AuditError(f"the audit log {self.files.path} failed before", found=self._dead)
        try:
            if self._rotation_due():
                self._rotate()
                self._find_expired()
            self._write([*self._notes, *bodies], [o for body in bodies for o in body.openings])
            self._notes.clear()
            self._keep_house()
        except OSError as error:
            message = f"the audit log {self.files.path} cannot be written"
            if error.errno in _NO_SPACE and self._take_back():
                raise NoSpaceError(message, found=str(error)) from error
            self._dead = str(error)
            raise AuditError(message, found=str(error)) from error
        except AuditError as error:
            if not isinstance(error, NoSpaceError):
                self._dead = self._dead or error.found or str(error)
            raise

    def _write(self, bodies: Sequence[Body], openings: Sequence[bytes]) -> None:
        if self._fd < 0:
            self._fd = os.open(
                self.files.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            self._new_name = True
            self._lock.hold(self._fd, self.files.path)
        header = self._header
        if header is None:
            header = self._new_header()
            bodies = [own_record(SEGMENT, header.time, **header.detail()), *bodies]
        tree, prev, lines = self._tree.copy(), self._prev, []
        for body in bodies:
            line = body.line(tree.size, prev)
            prev = leaf_hash(line)
            tree.append(prev)
            lines.append(line)
        data = memoryview(b"\n".join([*lines, b""]))
        if openings:
            # First, so that no record is on the disk whose opening is not.
            self._openings().append(openings)
        # At its place rather than at the end: what is torn there is replaced by the record that says so.
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], self._size + written)
        if os.fstat(self._fd).st_size > self._size + written:
            os.ftruncate(self._fd, self._size + written)
        sync(self._fd, self.files.path)
        if self._new_name:
            sync_folder(self.files.path)
            self._new_name = False
        if openings:
            self._openings().settle()
        self._tree, self._prev, self._header = tree, prev, header
        self._size += written

    def _new_header(self) -> Header:
        checkpoint = None
        if self._tree.size:
            checkpoint = self._make_checkpoint().note
        return Header(
            self._origin, self._number, self._tree.copy(), round(self._clock(), 6), checkpoint
        )

    def _take_back(self) -> bool:
        """Cuts off what was written of records that are not whole; whether that worked."""
        try:
            if self._fd >= 0:
                os.ftruncate(self._fd, self._size)
            if self._beside is not None:
                self._beside.take_back()
        except OSError:
            return False
        return True

    # -- prompts and outputs

    def _openings(self) -> OpeningsFile:
        if self._beside is None:
            self._beside = OpeningsFile(self.files.content_path(self._number))
        return self._beside

    def _close_openings(self) -> None:
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def erase(self, commitments: Collection[str]) -> None:
        """Takes openings out of the side files; that it is on record is for the caller to see to.

        Raises:
            AuditError: some may be left, which goes on at the next opening of the log.
        """
        self._housekeeper.close()
        self._close_openings()
        try:
            erase(self.files, commitments)
        except OSError as error:
            raise AuditError("not everything could be erased", found=str(error)) from error

    # -- segments

    def _rotation_due(self) -> bool:
        if self._header is None or self._fd < 0:
            return False
        age_s = self._clock() - self._header.time
        beside = self._beside.size if self._beside is not None else 0
        size = max(self._size, beside)
        return size >= self._options.rotate_bytes or age_s >= self._options.rotate_s

    def _rotate(self) -> None:
        self.checkpoint()
        self.files.path.rename(self.files.closed_path(self._number))
        with suppress(OSError):  # all of it is on the disk already
            os.close(self._fd)
        self._fd, self._size, self._header = -1, 0, None
        self._close_openings()
        self._number += 1
        self._rotated = True
        sync_folder(self.files.path)

    def _find_expired(self) -> None:
        """What is older than it is to be kept goes, but only after that is on record."""
        if self._old is None:
            # By a clock that somebody put forward everything would be old.
            opened, since = self._opened_at
            now = min(self._clock(), opened + self._steady() - since + _MOST_DRIFT_S)
            keep_s = self._options.retention_s
            try:
                self._old = expired(self.files, self._header, now, keep_s)
            except AuditError as error:
                # A closed segment that cannot be read is no reason to stop; verify will name what is wrong with it.
                self.note("expiry-failed", found=str(error))
            if self._old:
                self.note("expired", segments=list(self._old.numbers), before=self._old.before)

    def _keep_house(self) -> None:
        # What goes must be signed off: a record behind the newest checkpoint anybody can have put there.
        gone = self._old if self._old is not None and self._checkpointed_all() else None
        if self._rotated or gone is not None:
            self._housekeeper.start(gone.paths if gone else ())
            self._rotated, self._old = False, None if gone else self._old

    # -- checkpoints

    def _checkpointed_all(self) -> bool:
        """Makes a checkpoint of all records; whether that worked."""
        try:
            self.checkpoint()
        except AuditError:
            return False  # the records are safe, and what waits for it is tried again
        return True

    def checkpoint_due_s(self) -> float | None:
        """Seconds until a checkpoint is due; None while there is nothing new."""
        if self._tree.size == self._checkpointed or self._dead:
            return None
        # A clock that was put back must not put checkpoints off.
        self._checkpointed_at = min(self._checkpointed_at, self._clock())
        return max(0.0, self._checkpointed_at + self._options.checkpoint_s - self._clock())

    def checkpoint(self) -> None:
        """Writes the checkpoint of all records so far, whole or not at all.

        Raises:
            NoSpaceError: the disk is full.
            AuditError: it cannot be written. The log itself is sound.
        """
        self._checkpointed_at = self._clock()
        if self._tree.size == self._checkpointed:
            return
        made = self._make_checkpoint()
        try:
            with written_whole(self.files.checkpoint, AuditError) as temporary:
                temporary.write_text(made.note, encoding="utf-8", newline="\n")
        except AuditError as error:
            reason = error.__cause__ or error.__context__
            if isinstance(reason, OSError) and reason.errno in _NO_SPACE:
                raise NoSpaceError(error.message, found=error.found) from error
            raise
        self._checkpointed = self._tree.size

    def _make_checkpoint(self) -> Checkpoint:
        return Checkpoint.make(self._origin, self._tree.size, self._tree.root(), self._key)

    def close(self) -> None:
        """Lets go of the files. The checkpoint is for the caller to make."""
        self._housekeeper.close()
        self._close_openings()
        if self._fd >= 0:
            with suppress(OSError):  # all of it is on the disk already
                os.close(self._fd)
            self._fd = -1
        self._lock.release()
        self._dead = self._dead or "it is closed"
