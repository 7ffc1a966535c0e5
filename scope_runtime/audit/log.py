"""The audit log: events as JSON lines, on disk before the caller goes on."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from scope_runtime.errors import AuditError
from scope_runtime.events import Event


class JsonlLog:
    """Append-only JSON lines, one event a line, mode 0600, fsynced before ``write`` returns.

    Several processes may append to one file: each write is one ``write(2)`` on a descriptor opened for appending.
    A last line that a crash left torn is closed with a newline, never overwritten.

    Args:
        path: the log file; its directory is made if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(
                self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise AuditError(f"the audit log {path} cannot be opened", found=str(error)) from error
        self._failed: str | None = None
        self._close_torn_line()

    def _close_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")

    def write(self, events: Sequence[Event]) -> None:
        """Appends and fsyncs. After a failure the log refuses for good: a failed fsync must not be retried."""
        if not events:
            return
        data = "".join(
            json.dumps(e.record(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            + "\n"
            for e in events
        ).encode()
        with self._lock:
            if self._failed:
                raise AuditError(f"the audit log {self.path} failed before", found=self._failed)
            try:
                written = os.write(self._fd, data)
                while written < len(data):
                    written += os.write(self._fd, data[written:])
                os.fsync(self._fd)
            except OSError as error:
                self._failed = str(error)
                raise AuditError(
                    f"the audit log {self.path} cannot be written", found=str(error)
                ) from error

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._failed = "it is closed"


class MemoryLog:
    """Keeps the last events in memory, for ``Runtime.events()``."""

    def __init__(self, keep: int = 10_000) -> None:
        self.kept: deque[Event] = deque(maxlen=keep)

    def write(self, events: Sequence[Event]) -> None:
        self.kept.extend(events)

    def close(self) -> None:
        """Nothing to close; what was kept stays readable."""
