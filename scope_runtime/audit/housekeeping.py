"""Closed segments and their side files: compressing them, and deleting those that are past their time."""

from __future__ import annotations

import gzip
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.audit.segments import Header, LogFiles, read_header
from scope_runtime.errors import AuditError, ScopeError
from scope_runtime.files import written_whole


@dataclass(frozen=True, slots=True)
class Expired:
    """Segments that may go.

    Attributes:
        paths: side files first: what has expired of the log is on record, so that nobody misses them.
        before: index of the first record that stays.
    """

    paths: tuple[Path, ...]
    numbers: tuple[int, ...]
    before: int


def expired(
    files: LogFiles, active: Header | None, now: float, retention_s: float | None
) -> Expired | None:
    """The oldest segments whose last record is past its time; None if there are none.

    Of two segments the younger one's first record is no older than the older one's last.
    """
    if retention_s is None:
        return None
    closed = list(files.closed().items())
    old: list[tuple[int, Path]] = []
    before = 0
    for position, (number, path) in enumerate(closed):
        last = position + 1 == len(closed)
        header = active if last else read_header(closed[position + 1][1])
        if header is None or header.time > now - retention_s:
            break
        old.append((number, path))
        before = header.tree.size
    if not old:
        return None
    numbers = tuple(number for number, _ in old)
    kept = [files.content_path(n, packed=packed) for n in numbers for packed in (False, True)]
    paths = (*(path for path in kept if path.exists()), *(path for _, path in old))
    return Expired(paths, numbers, before)


class Housekeeper:
    """Does what takes long in a thread of its own, so that no record waits for it."""

    def __init__(self, files: LogFiles, *, compress: bool) -> None:
        self._files = files
        self._compress = compress
        self._thread: threading.Thread | None = None

    def start(self, delete: Sequence[Path]) -> None:
        """Deletes segments; then compresses those that are closed and are not compressed."""
        self.close()
        for path in delete:
            # What cannot be deleted now is on record as expired, and is tried again at the next rotation.
            with suppress(OSError):
                path.unlink()
        if self._compress and self._plain():
            self._thread = threading.Thread(target=self._run, name="audit-compress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        # What fails stays as it is, whole and plain, and is tried again at the next rotation.
        with suppress(OSError):
            for path in self._plain():
                with suppress(OSError, ScopeError):
                    compress(path)

    def _plain(self) -> list[Path]:
        closed = self._files.closed()
        beside = [path for number, path in self._files.contents().items() if number in closed]
        return [path for path in (*closed.values(), *beside) if path.suffix != ".gz"]

    def close(self) -> None:
        """Waits for what is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def compress(path: Path) -> None:
    """Puts ``path.gz`` in the place of ``path``. Only when it is on the disk does the plain one go.

    Raises:
        AuditError, OSError: the plain one is still there.
    """
    with written_whole(path.with_name(path.name + ".gz"), AuditError) as temporary:
        temporary.chmod(0o600)
        with (
            path.open("rb") as plain,
            temporary.open("wb") as raw,
            # Without time and name: the same records are the same bytes.
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed, 1 << 20)
    path.unlink()
