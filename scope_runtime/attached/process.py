"""A server's process, which may be no child of ours: whether it runs, how it ended, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from pathlib import Path

END_S = 10.0
"""What a process may take to end when it is asked to."""


class Process:
    """A running process that leads a session of its own. Any thread may call.

    Args:
        pid: its number.
        child: where it is ours, so that nothing is left of it in the process table.

    Raises:
        ProcessLookupError: there is none with this number.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._child = child
        self._lock = threading.Lock()  # of what follows
        self._over = False

    @classmethod
    def of(cls, child: subprocess.Popen[bytes]) -> Process:
        """Of a child."""
        return cls(child.pid, child)

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether it has ended, by then; also after ``close``, where nobody can tell any more."""
        with self._lock:
            if self._over:
                return True
            try:
                # Of its own: another thread may close it, and its number may be another file's by then.
                fd = os.dup(self._fd)
            except OSError:
                # No more files can be opened: whoever else asks waits meanwhile.
                if not _readable(self._fd, timeout_s):
                    return False
                self._reap()
                return True
        try:
            if not _readable(fd, timeout_s):
                return False
        finally:
            os.close(fd)
        with self._lock:
            self._reap()
        return True

    def _reap(self) -> None:
        if not self._over and self._child is not None:
            # As long as nobody has waited for it, its number, and that of its group, is nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()
        self._over = True

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self._child.poll() if self._child is not None else None
        if code is None:
            return "ended"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def end(self, timeout_s: float = END_S) -> None:
        """Ends it: asked first, and all of its session when it does not listen within this time."""
        with self._lock:
            if not self._over:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._fd, signal.SIGTERM)
        if not self.ended(timeout_s):
            self.kill(timeout_s)

    def kill(self, timeout_s: float = END_S) -> None:
        """Ends it and all of its session at once. One that a driver holds in the kernel is given up after this time."""
        if self.ended():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if not self.ended(timeout_s):
            with self._lock:
                self._over = True

    def close(self) -> None:
        """Lets go of it; whether it runs is not known any more. Safe to call twice."""
        with self._lock:
            self._over = True
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1e3))


def started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may have anything in it.
    return int(stat.rpartition(")")[2].split()[19])
