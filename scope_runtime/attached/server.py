"""A llama-server process with the hook in it: started in a session of its own, found again, ended.

Its folder holds ``lock`` (of the one gateway that uses it), ``server.json`` (which process runs, and as what), ``key``
(which opens it), ``server.log`` and ``control-…/`` (`shared.SharedHook`; a new one for each process).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scope_runtime.attached.arguments import ServerCommand, server_environment
from scope_runtime.attached.shared import SharedHook
from scope_runtime.attached.upstream import Upstream
from scope_runtime.errors import HookError, ScopeError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.types import ModelShape

LOAD_HOOK_S = 10.0
"""What a process may take until its dynamic linker has loaded the hook."""

END_S = 10.0
"""What it may take to end when it is asked to."""

_LOOK_S = 0.05
_LAST_LINES = 20
_MAX_LOG_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """What ``server.json`` says of a process; ``started`` tells it from a later one with its number."""

    pid: int
    started: int
    port: int
    command: str
    control: str


class Process:
    """A process that may be no child of ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._child: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, child: subprocess.Popen[bytes]) -> Process:
        process = cls(child.pid)
        process._child = child
        return process

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether it has ended, by then."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(timeout_s * 1e3):
            return False
        if self._child is not None:
            self._child.wait()  # no zombie is left
        return True

    @property
    def how(self) -> str:
        """How it ended, in words."""
        code = self._child.poll() if self._child is not None else None
        if code is None:
            return "ended"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """Ends it: asked first, and all of its session when it does not listen."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGTERM)
        if not self.ended(END_S):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # it leads its own session
            self.ended(END_S)

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Attached:
    """A server that is running, proved, and ours."""

    process: Process
    hook: SharedHook
    upstream: Upstream
    adopted: bool

    def close(self) -> None:
        """Lets go of it; it goes on."""
        self.hook.close()
        self.upstream.close()
        self.process.close()


class ServerFolder:
    """The one user of a folder, and the server that runs in it.

    Args:
        path: made where it is not there, for this user alone.
        say: told each line of the server's log.

    Raises:
        UsageError: somebody else uses it, or could reach into it.
    """

    def __init__(self, path: Path, command: ServerCommand, say: Callable[[str], None]) -> None:
        self.path = path
        self._command = command
        self._closing = threading.Event()
        _private(path)
        self._lock = (path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(
                f"another gateway uses the server in {path}", hint="Give each its own --state"
            ) from None
        self._log = LogTail(path / "server.log", say)

    def close_starts(self) -> None:
        """Ends a start that is under way, and lets none begin."""
        self._closing.set()

    def close(self) -> None:
        """Lets others use the folder; the server goes on."""
        self._closing.set()
        self._log.close()
        self._lock.close()

    # -- a new one

    def start(self, shape: ModelShape) -> Attached:
        """Starts the server and proves it.

        Raises:
            HookError: it does not come up, the hook does not get into it, or cannot do its work there.
        """
        self._forget()
        number = secrets.token_hex(4)
        control = self.path / f"control-{number}"
        key = secrets.token_hex(32)
        _write_private(self.path / "key", key + "\n")
        hook = SharedHook.create(control, shape)
        try:
            port = _free_port()
            process = self._run(port, hook)
        except BaseException:
            hook.close()
            raise
        upstream = Upstream(port, key)
        server = Attached(process, hook, upstream, adopted=False)
        try:
            self._wait_loaded(server)
            self._wait_healthy(server)
            hook.prove(upstream.probe, upstream.probe_tokens())
            started = _started(process.pid)
            kept = Kept(process.pid, started or 0, port, self._command.digest, control.name)
            with written_whole(self.path / "server.json", UsageError) as file:
                file.write_text(json.dumps(asdict(kept)), encoding="utf-8")
        except BaseException as error:
            gone = process.ended()
            process.end()
            if gone and isinstance(error, ScopeError):
                error = self._gone(process)
            server.close()
            shutil.rmtree(control, ignore_errors=True)
            raise error from None
        return server

    def _run(self, port: int, hook: SharedHook) -> Process:
        argv = self._command.argv(port, self.path / "key")
        log = os.open(self.path / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=server_environment(hook.environment),
                # It outlives us when we are killed, and our terminal's interrupts are not for it.
                start_new_session=True,
            )
        except OSError as error:
            raise HookError("llama-server cannot be run", found=str(error)) from error
        finally:
            os.close(log)
        return Process.of(child)

    def _wait_loaded(self, server: Attached) -> None:
        until = time.monotonic() + LOAD_HOOK_S
        while True:
            try:
                server.hook.wait_loaded(_LOOK_S)
                return
            except HookError:
                if server.process.ended() or time.monotonic() > until:
                    raise

    def _wait_healthy(self, server: Attached) -> None:
        """Loading takes as long as the model is large: only its own end, or ours, ends the wait."""
        while not server.upstream.healthy():
            if server.process.ended(_LOOK_S):
                raise self._gone(server.process)
            if self._closing.is_set():
                raise HookError("the gateway is ending")

    def _gone(self, process: Process) -> HookError:
        told = self._log.last_lines()
        return HookError(f"llama-server did not start: {process.how}", found=told or "no word")

    def _forget(self) -> None:
        for old in self.path.glob("control-*"):
            shutil.rmtree(old, ignore_errors=True)
        (self.path / "server.json").unlink(missing_ok=True)

    # -- one that is there

    def adopt(self) -> tuple[Attached | None, str | None]:
        """Takes over the server that a gateway before left running; one that is not what is asked for is ended.

        Returns:
            The server, or None; and what happened to one that was there and is not taken over.
        """
        kept = self._kept()
        if kept is None or _started(kept.pid) != kept.started:
            return None, None
        try:
            process = Process(kept.pid)
        except ProcessLookupError:
            return None, None
        if process.ended():
            process.close()
            return None, None
        why = "it was started otherwise"
        if kept.command == self._command.digest:
            try:
                return self._taken_over(process, kept), None
            except ScopeError as error:
                why = str(error)
        process.end()
        process.close()
        return None, why

    def _taken_over(self, process: Process, kept: Kept) -> Attached:
        hook = SharedHook.adopt(self.path / kept.control)
        upstream = Upstream(kept.port, (self.path / "key").read_text().strip())
        try:
            if not hook.status.proved:
                raise HookError("its context is not proved")
            if not upstream.healthy():
                raise HookError("it does not answer")
            for slot in upstream.wait_idle():
                if hook.slot(slot).request_id is not None:
                    hook.end(slot)
            hook.drain()  # of requests whose gateway is gone: their clients are, too
            hook.assign({})
            for serial in hook.programs:
                hook.release(serial)
        except BaseException:
            hook.close()
            upstream.close()
            raise
        return Attached(process, hook, upstream, adopted=True)

    def _kept(self) -> Kept | None:
        try:
            read: dict[str, Any] = json.loads((self.path / "server.json").read_bytes())
            return Kept(**read)
        except (OSError, ValueError, TypeError):
            return None

    def end(self, server: Attached) -> None:
        """Ends the server, and forgets it."""
        server.process.end()
        server.close()
        self._forget()


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
        self._last: list[str] = []
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
                self._last = [*self._last[1 - _LAST_LINES :], line]
                self._say(line)

    def _lines(self) -> Iterator[str]:
        data = self._file.read()
        if self._file.tell() > _MAX_LOG_BYTES:
            # The server appends: what it writes next is at the new end.
            os.ftruncate(self._fd, 0)
            self._file.seek(0)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def _private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.lstat()
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}", found=str(error)) from error
    if made.st_uid != os.geteuid() or made.st_mode & 0o077:
        raise UsageError(
            f"others may reach into the folder {path}",
            found=f"mode {made.st_mode & 0o777:o} of user {made.st_uid}",
            expected=f"mode 700 of user {os.geteuid()}",
        )


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    """One that was free a moment ago; if somebody takes it first, the server does not start, and another is tried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may have anything in it.
    return int(stat.rpartition(")")[2].split()[19])
