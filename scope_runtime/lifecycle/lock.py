"""One process to each state directory: two would each forget what the other keeps."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from scope_runtime.errors import Location
from scope_runtime.lifecycle.state import StateError

_HALF_WRITTEN = (".active.json.*.tmp", ".off.json.*.tmp", "sets/.*.tmp", "bundles/.new-*")


class StateLock:
    """Held from construction to ``release``; the kernel lets go of it when the process ends, however it ends.

    Whoever has it drops what a process that was killed had half written.

    Raises:
        StateError: somebody else holds it, and who; or the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as reason:
            raise _error("cannot be locked", path, reason) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._descriptor)
            self.release()
            raise StateError(
                "another process uses the state directory",
                location=Location(str(folder)),
                found=holder,
                hint="Give each process one of its own",
            ) from None
        except OSError as reason:
            self.release()
            raise _error("cannot be locked", path, reason) from None
        me = {"pid": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(me).encode(), 0)
        for pattern in _HALF_WRITTEN:
            for left in folder.glob(pattern):
                with suppress(OSError):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def release(self) -> None:
        """Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _error(message: str, path: Path, reason: OSError) -> StateError:
    return StateError(message, location=Location(str(path)), found=reason.strerror or str(reason))
