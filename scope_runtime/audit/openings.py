"""The files beside the segments: one line per prompt or output that is kept, until it is erased or expires.

``audit.000003.content`` belongs to segment 3, also while that is the one that is written to. It is no part of the
chain: a line can be taken out, and the log verifies.
"""

from __future__ import annotations

import glob
import gzip
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from scope_runtime.audit.contents import Opening
from scope_runtime.audit.segments import LogFiles, read_lines
from scope_runtime.errors import AuditError
from scope_runtime.files import written_whole

Wanted = Callable[[Opening], bool]


def sync(fd: int, path: Path) -> None:
    """After a failed fsync the kernel may say that all is well the next time, and it is not: never twice."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise AuditError(
            f"the audit log {path} cannot be written", found=f"fsync: {error}"
        ) from error


def sync_folder(path: Path) -> None:
    """Puts the names in a file's folder on the disk."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd, path)
    finally:
        os.close(fd)


class OpeningsFile:
    """The side file of the segment that is written to. It is made when there is something for it.

    Args:
        path: whole lines only, if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._size = path.stat().st_size if path.exists() else 0
        self._more = 0

    @property
    def size(self) -> int:
        """Bytes that are there to stay."""
        return self._size

    def append(self, lines: Sequence[bytes]) -> None:
        """Puts lines on the disk; they stay once ``settle`` is called.

        Raises:
            OSError: they are not whole; ``take_back`` removes what is there of them.
            AuditError: a failed fsync, which is final.
        """
        if not lines:
            return
        new = not self.path.exists()
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
        data, written = memoryview(b"".join(lines)), 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], self._size + written)
        self._more = written
        sync(self._fd, self.path)
        if new:
            sync_folder(self.path)

    def settle(self) -> None:
        """What was appended belongs to records that are on the disk."""
        self._size, self._more = self._size + self._more, 0

    def take_back(self) -> None:
        """Cuts off what was not settled. Raises OSError."""
        self._more = 0
        if self._fd >= 0:
            os.ftruncate(self._fd, self._size)

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):  # all of it is on the disk already
                os.close(self._fd)
            self._fd = -1


def openings(path: Path) -> Iterator[Opening | None]:
    """The lines of a side file; None for one that is no opening.

    Raises:
        AuditError: as of ``read_lines``.
    """
    return map(Opening.parse, read_lines(path))


def all_openings(files: LogFiles, of: Collection[str]) -> dict[str, Opening]:
    """What opens these commitments, as far as it is there."""
    found = {}
    for path in files.contents().values():
        for opening in openings(path) if of else ():
            if opening is not None and opening.commitment in of:
                found[opening.commitment] = opening
    return found


def tidy(files: LogFiles, number: int, known: Collection[str]) -> int:
    """Takes out of the open segment's side file what a crash left there: lines of records that were never written.

    Returns:
        how many lines went; a torn one counts.

    Raises:
        AuditError, OSError: it cannot be read or written.
    """
    for left in files.path.parent.glob(f".{glob.escape(files.path.stem)}.*.content*.tmp"):
        left.unlink()  # half a copy, which may hold what is to be erased
    path = files.content_path(number)
    if not path.exists():
        return 0
    lines = list(read_lines(path))
    good = [line for line in lines if _name(line) in known]
    if len(good) < len(lines):
        _replace(path, good)
    return len(lines) - len(good)


def find(files: LogFiles, wanted: Wanted) -> list[Opening]:
    """The openings that are wanted, oldest first."""
    return [
        opening
        for path in files.contents().values()
        for opening in openings(path)
        if opening is not None and wanted(opening)
    ]


def erase(files: LogFiles, commitments: Collection[str]) -> None:
    """Takes lines out of side files: new files without them in the old ones' places, whose bytes are overwritten.

    What the disk itself keeps of overwritten bytes (journals, snapshots, worn cells of an SSD) is beyond this.

    Raises:
        AuditError, OSError: some of them may still be there.
    """
    for number, path in files.contents().items():
        lines = list(read_lines(path))
        good = [line for line in lines if _name(line) not in commitments]
        if len(good) < len(lines):
            _replace(path, good)
        packed = files.content_path(number, packed=True)
        if path != packed and packed.exists():
            # A crash in the middle of compressing left both.
            _overwrite_and(packed, packed.unlink)


def _name(line: bytes) -> str | None:
    opening = Opening.parse(line)
    return opening.commitment if opening else None


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    data = b"".join(lines)

    def put() -> None:
        with written_whole(path, AuditError) as temporary:
            temporary.chmod(0o600)
            temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

    _overwrite_and(path, put)


def _overwrite_and(path: Path, then: Callable[[], None]) -> None:
    """Puts something else in a file's place, and only when that is done overwrites what was there."""
    with path.open("rb+") as old:
        size = os.fstat(old.fileno()).st_size
        then()
        old.write(bytes(size))
        old.flush()
        os.fsync(old.fileno())
