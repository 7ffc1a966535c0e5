"""A llama-server with the hook in it: started in a session of its own, found again, ended.

Its folder holds ``lock`` (of the one gateway that uses it), ``server.json`` (which process runs, and as what), ``key``
(which opens it), ``server.log`` and ``control-…/`` (of the `interface.Steering`; a new one for each process).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scope_runtime.attached.arguments import ServerCommand, server_environment
from scope_runtime.attached.interface import AttachedHook, Steering
from scope_runtime.attached.log_tail import LogTail
from scope_runtime.attached.process import Process, started
from scope_runtime.attached.shared import Preloaded
from scope_runtime.attached.signs import HANGS_S, SignsOfLife
from scope_runtime.attached.upstream import Upstream
from scope_runtime.errors import HookError, ScopeError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.types import ModelShape

_LOOK_S = 0.05
_HEALTHY_S = 1.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What ``server.json`` says of a process; ``started`` tells it from a later one with its number."""

    pid: int
    started: int
    port: int
    command: str
    control: str
    proved: bool


@dataclass(frozen=True, slots=True)
class Attached:
    """A server that is running, proved, and ours."""

    process: Process
    hook: AttachedHook
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
        hangs_s: a server that shows no sign of life for so long while it starts has not started.
        steering: what makes the hook of each server.

    Raises:
        UsageError: somebody else uses it, or could reach into it.
    """

    def __init__(
        self,
        path: Path,
        command: ServerCommand,
        say: Callable[[str], None],
        hangs_s: float = HANGS_S,
        steering: Steering | None = None,
    ) -> None:
        self.path = path
        self._steering = steering or Preloaded()
        self._hangs_s = hangs_s
        self._command = command
        self._model_version = command.model_version
        self._starting: Process | None = None
        self._latest: Process | None = None
        self._ending = False
        self._mutex = threading.Lock()  # of the three above
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
        with self._mutex:
            self._ending, starting = True, self._starting
        if starting is not None:
            starting.end()

    def kill(self) -> None:
        """Ends whatever runs, and lets nothing start: nobody will be there to do it later."""
        with self._mutex:
            self._ending, latest = True, self._latest
        if latest is not None:
            latest.kill()

    def close(self) -> None:
        """Lets others use the folder; the server goes on."""
        self._log.close()
        self._lock.close()

    # -- a new one

    def start(self, shape: ModelShape) -> Attached:
        """Starts the server and proves it.

        Raises:
            HookError: it does not come up, the hook does not get into it, or cannot do its work there.
        """
        if self._command.model_version != self._model_version:
            raise HookError(
                "the model's file is another one than when the gateway started",
                found=str(self._command.model),
                hint="Start the gateway again: policies and records are held against the model's file",
            )
        self._steering.check(self._command.program)
        self._forget()
        control = self.path / f"control-{secrets.token_hex(4)}"
        key = secrets.token_hex(32)
        _write_private(self.path / "key", key + "\n")
        hook = self._steering.create(control, shape)
        try:
            port = _free_port()
            process = self._run(port, hook)
            hook.runs_in(process)
        except BaseException:
            hook.close()
            raise
        server = Attached(process, hook, Upstream(port, key), adopted=False)
        try:
            # From now on it is found again, and ended if it was not proved by then.
            since, digest = started(process.pid) or 0, self._command.digest
            kept = Kept(process.pid, since, port, digest, control.name, proved=False)
            self._keep(kept)
            self._wait_healthy(server)
            hook.prove(server.upstream.probe, server.upstream.probe_tokens())
            self._keep(replace(kept, proved=True))
            with self._mutex:
                self._starting = None
        except BaseException as error:
            gone = process.ended()
            process.end()
            with self._mutex:
                self._starting, ending = None, self._ending
            if gone and isinstance(error, ScopeError):
                error = HookError("the gateway is ending") if ending else self._gone(process)
            server.close()
            self._forget()
            raise error from None
        return server

    def _run(self, port: int, hook: AttachedHook) -> Process:
        argv = [*self._command.argv(port, self.path / "key"), *hook.arguments]
        log = os.open(self.path / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with self._mutex:
                if self._ending:
                    raise HookError("the gateway is ending")
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=server_environment(hook.environment),
                    # It outlives us when we are killed, and our terminal's interrupts are not for it.
                    start_new_session=True,
                )
                self._starting = self._latest = Process.of(child)
                return self._starting
        except OSError as error:
            raise HookError("llama-server cannot be run", found=str(error)) from error
        finally:
            os.close(log)

    def _wait_healthy(self, server: Attached) -> None:
        """Loading takes as long as the model is large: only its own end, or ours, or a hang ends the wait."""
        signs = SignsOfLife.of_start(server, self._hangs_s)
        while not server.upstream.healthy(_HEALTHY_S):
            if server.process.ended(_LOOK_S):
                raise self._gone(server.process)
            if signs.hangs():
                raise HookError(
                    f"llama-server shows no sign of life for {self._hangs_s:g} s while it starts"
                )
        # The dynamic linker loads the hook before anything else runs.
        server.hook.wait_loaded(0.0)

    def _gone(self, process: Process) -> HookError:
        told = self._log.last_lines()
        return HookError(f"llama-server did not start: {process.how}", found=told or "no word")

    def _keep(self, kept: Kept) -> None:
        with written_whole(self.path / "server.json", UsageError) as file:
            file.write_text(json.dumps(asdict(kept)), encoding="utf-8")

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
        if kept is None or started(kept.pid) != kept.started:
            return None, None
        try:
            process = Process(kept.pid)
        except ProcessLookupError:
            return None, None
        if process.ended():
            process.close()
            return None, None
        with self._mutex:
            self._latest = process
        why = "it was started otherwise"
        if kept.command == self._command.digest:
            try:
                return self._taken_over(process, kept), None
            except (ScopeError, OSError) as error:
                why = str(error)
        process.end()
        process.close()
        return None, why

    def _taken_over(self, process: Process, kept: Kept) -> Attached:
        hook = self._steering.adopt(self.path / kept.control)
        hook.runs_in(process)
        upstream = Upstream(kept.port, (self.path / "key").read_text().strip())
        try:
            if not kept.proved or not hook.status.proved:
                raise HookError("it was not proved")
            if not upstream.healthy():
                raise HookError("it does not answer")
            for slot in upstream.wait_idle():
                if hook.slot(slot).request_id is not None:
                    hook.end(slot)
            hook.drain()  # of requests whose gateway is gone: their clients are, too
            hook.assign({})
            for serial in hook.programs:
                # One whose gateway was killed between its file and its command is not held.
                with contextlib.suppress(HookError):
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
