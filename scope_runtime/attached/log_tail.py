"""A server's log, passed on."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

_LAST_LINES = 20
_MAX_BYTES = 16 * 2**20


class LogTail:
    """Passes a log on, line by line, and keeps its file short. The file is appended to by another process.

    Args:
        say: called on a thread of its own.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._say = say
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb")
        self._fd = self._file.fileno()
        self._file.seek(0, os.SEEK_END)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._rest = b""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="scope-server-log", daemon=True)
        self._thread.start()

    def last_lines(self) -> str:
        """The latest, in one text."""
        self._read()
        return "\n".join(self._last)

    def close(self) -> None:
        """Passes on what is left."""
        self._closing.set()
        self._thread.join()
        self._read()
        self._file.close()

    def _follow(self) -> None:
        # Nothing tells that a file has grown, but the file.
        while not self._closing.wait(0.1):
            self._read()

    def _read(self) -> None:
        with self._lock:
            for line in self._lines():
                self._last.append(line)
                self._say(line)

    def _lines(self) -> Iterator[str]:
        data = self._file.read()
        if self._file.tell() > _MAX_BYTES:
            # The server appends: what it writes next is at the new end.
            os.ftruncate(self._fd, 0)
            self._file.seek(0)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
