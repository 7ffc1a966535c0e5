"""One writer per log: a lock that a crash cannot leave behind."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from scope_runtime.errors import AuditError


class LogLock:
    """Held from construction to ``release``; the kernel lets go of it when the process ends.

    Raises:
        AuditError: somebody else holds it, and who; or the file cannot be made.
    """

    def __init__(self, path: Path, log: Path, now: float) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"the audit log {log} cannot be opened", found=str(error)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._fd)
            os.close(self._fd)
            raise AuditError(
                f"the audit log {log} is being written already",
                found=holder,
                hint="Two writers cannot share one chain: give each a log of its own",
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise AuditError(f"the audit log {log} cannot be locked", found=str(error)) from error
        since = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
        program = Path(sys.argv[0]).name if sys.argv else "python"
        text = json.dumps(
            {"pid": os.getpid(), "program": program, "host": socket.gethostname(), "since": since}
        )
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)

    def hold(self, fd: int, log: Path) -> None:
        """Locks the log itself too: the lock file may be deleted by somebody who takes it for stale.

        Raises:
            AuditError: somebody else holds it.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AuditError(
                f"the audit log {log} is being written already",
                found="another process, whose lock file is gone",
                hint="Two writers cannot share one chain: give each a log of its own",
            ) from error

    def release(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):  # the descriptor is gone in any case, and with it the lock
                os.close(self._fd)
            self._fd = -1


def _holder(fd: int) -> str:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
        return (
            f"process {found['pid']} ({found['program']}) on {found['host']} since {found['since']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
