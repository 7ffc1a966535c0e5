"""The process: listeners first, then the model, then requests; signals; an end in which nobody is cut off early."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from scope_runtime.lifecycle.address import Address
from scope_runtime.lifecycle.control import peer_protocol
from scope_runtime.lifecycle.listen import listening, tcp_socket, unix_socket
from scope_runtime.serve.admin import Control, admin_app
from scope_runtime.serve.app import public_app
from scope_runtime.serve.ask import Engine
from scope_runtime.serve.gateway import Gateway, Phase
from scope_runtime.serve.keys import KeyRing
from scope_runtime.serve.notify import Supervisor
from scope_runtime.serve.options import ServeOptions
from scope_runtime.serve.protocol import bounded

AT_ONCE_S = 5.0
"""What an end at once may take, until the process is left where it stands."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a process serves: an engine, and what its policies are controlled through (None: they never change).

    ``trouble``: why the engine cannot answer at the moment; None when it can.
    """

    engine: Engine
    control: Control | None
    trouble: Callable[[], str | None] = lambda: None


class _Quiet(uvicorn.Server):
    """Signals are the process' affair, not each listener's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    options: ServeOptions,
    model: str,
    opener: Callable[[KeyRing], Opened],
    ready: Callable[[str], None] = lambda line: None,
    leaving: Sequence[Callable[[], None]] = (),
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second one ends at once.

    Args:
        model: its name in requests.
        opener: loads the model; called on a thread, while probes are answered already.
        ready: told where users and operators reach it, a line each, when the first request can be answered.
        leaving: called where an end at once takes too long, and the process is left as it stands.

    Raises:
        ScopeError: it cannot start.
    """
    options.check()
    supervisor = Supervisor.of()
    keys = KeyRing(options.keys)
    options.check_admin(keys.has_admin)
    with contextlib.ExitStack() as sockets:
        public = sockets.enter_context(tcp_socket(options.listen))
        admin: socket.socket | None = None
        if isinstance(options.admin, Path):
            admin = sockets.enter_context(unix_socket(options.admin))
            sockets.callback(options.admin.unlink, missing_ok=True)
        elif options.admin is not None:
            admin = sockets.enter_context(tcp_socket(options.admin))
        process = _Process(options, model, keys, opener, ready, leaving, supervisor)
        asyncio.run(process.run(public, admin))


class _Process:
    def __init__(
        self,
        options: ServeOptions,
        model: str,
        keys: KeyRing,
        opener: Callable[[KeyRing], Opened],
        ready: Callable[[str], None],
        leaving: Sequence[Callable[[], None]],
        supervisor: Supervisor,
    ) -> None:
        self._options = options
        self._keys = keys
        self._opener = opener
        self._ready = ready
        self._leaving = leaving
        self._supervisor = supervisor
        self._control: Control | None = None
        self._trouble: Callable[[], str | None] = lambda: None
        self._gateway = Gateway(options, model, keys, self._stale, self._unable)
        self._asked_to_end = asyncio.Event()
        self._at_once = asyncio.Event()

    def _stale(self) -> str | None:
        return self._control.stale() if self._control is not None else None

    def _unable(self) -> str | None:
        """Why no request can be answered at the moment, or none put on record."""
        unrecorded = self._control.unrecorded() if self._control is not None else None
        return self._trouble() or unrecorded

    async def run(self, public: socket.socket, admin: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end)
        protocol = bounded(self._options)
        servers = [self._listener(public_app(self._gateway), public, protocol)]
        if admin is not None:
            own = isinstance(self._options.admin, Path)
            app = admin_app(self._gateway, lambda: self._control, keyless=own)
            servers.append(self._listener(app, admin, peer_protocol() if own else protocol))
        try:
            await self._live(public, admin)
        finally:
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*(task for _, task in servers))

    def _listener(
        self, app: ASGIApp, at: socket.socket, protocol: type[H11Protocol]
    ) -> tuple[uvicorn.Server, asyncio.Task[None]]:
        server = _Quiet(listening(app, protocol, log_level="error"))
        return server, asyncio.ensure_future(server.serve(sockets=[at]))

    async def _live(self, public: socket.socket, admin: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(None, self._opener, self._keys)
        opened = await loading
        try:
            self._control, self._trouble = opened.control, opened.trouble
            if opened.control is not None:
                opened.control.handle_signals(loop, self._supervisor)
                opened.control.count(self._gateway)
            self._gateway.serve(opened.engine)
            if admin is not None:
                self._ready(f"admin: {_place(admin)}")
            self._ready(f"ready: {_place(public)}/v1")
            self._supervisor.ready(f"answering at {_place(public)}/v1")
            await self._asked_to_end.wait()
            self._supervisor.stopping("running answers may end")
            await self._drain()
        finally:
            await opened.engine.close()

    async def _drain(self) -> None:
        drained = asyncio.ensure_future(self._gateway.drain())
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait({drained, at_once}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            await self._gateway.end_all()
        for task in (drained, at_once):
            task.cancel()
        await asyncio.gather(drained, at_once, return_exceptions=True)

    def _on_end(self) -> None:
        first = not self._asked_to_end.is_set()
        self._asked_to_end.set()
        if first and self._gateway.phase is not Phase.LOADING:
            return
        if not self._at_once.is_set():
            self._at_once.set()
            # A load or a long prompt cannot be broken off; what the log has acknowledged is safe in any case.
            threading.Thread(target=self._leave, name="scope-leave", daemon=True).start()

    def _leave(self) -> None:
        threading.Event().wait(AT_ONCE_S)
        for end in list(self._leaving):
            with contextlib.suppress(Exception):
                end()
        sys.stderr.flush()
        os._exit(128 + signal.SIGTERM)


def _place(at: socket.socket) -> str:
    """Where a listener is reached; port 0 has become one by now."""
    name = at.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://{Address(*name[:2])}"
