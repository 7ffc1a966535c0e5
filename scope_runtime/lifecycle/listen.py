"""Sockets to serve at, and a web server on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from scope_runtime.errors import Location, UsageError
from scope_runtime.lifecycle.address import Address

_BACKLOG = 16

KEEP_ALIVE_S = 75
"""How long an idle connection stays open. Longer than clients and proxies keep theirs (5 to 60 s): whoever hangs up
first must not be the server, or a request that is just being sent is lost."""


def tcp_socket(address: Address) -> socket.socket:
    """Takes the address; nobody can connect before a server is started on it. Raises UsageError."""
    try:
        ((family, kind, _, _, place), *_) = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        made = socket.socket(family, kind)
    except OSError as reason:
        raise _unusable(address, reason) from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError as reason:
        made.close()
        raise _unusable(address, reason) from None
    return made


def _unusable(address: Address, reason: OSError) -> UsageError:
    return UsageError(
        f"cannot listen at {address}",
        found=reason.strerror or str(reason),
        hint="Does another process listen there?",
    )


def unix_socket(path: Path) -> socket.socket:
    """A socket that only its owner can open; its directory is made if missing, a dead one is replaced.

    Raises:
        UsageError: another process serves there, or it cannot be made.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket() and not _answers(path):
            path.unlink()
        _bind_closed(made, path)
        made.listen(_BACKLOG)
    except OSError as reason:
        made.close()
        other = path.exists() and not path.is_socket()
        raise UsageError(
            "the control socket cannot be made",
            location=Location(str(path)),
            found="a file that is no socket" if other else reason.strerror or str(reason),
            hint="Does another process serve there?" if path.is_socket() else None,
        ) from None
    return made


def _bind_closed(made: socket.socket, path: Path) -> None:
    """Born closed to others: the mode of a socket that is changed after bind was open for a moment."""
    # The name gets the descriptor's mode. The mask is the whole process's: a directory that another thread
    # made meanwhile would be one that nobody can enter.
    os.fchmod(made.fileno(), 0o600)
    made.bind(str(path))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def listening(
    app: ASGIApp, protocol: type[asyncio.Protocol] | str = "h11", *, log_level: str | None = None
) -> uvicorn.Config:
    """How each of our listeners serves: no lifespan, nothing logged by itself, 5 s to end in.

    Args:
        protocol: how uvicorn reads HTTP.
        log_level: of uvicorn's loggers, which are the whole process's; None leaves it.
    """
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=log_level,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


class Served:
    """An application served at a socket, on a thread of its own.

    Args:
        name: the thread's.
        protocol: how uvicorn reads HTTP.
    """

    def __init__(
        self,
        app: FastAPI,
        at: socket.socket,
        name: str,
        protocol: type[asyncio.Protocol] | str = "h11",
    ) -> None:
        self._socket = at
        self._server = uvicorn.Server(listening(app, protocol))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    @property
    def address(self) -> Address:
        """Where it listens, if that is TCP: the port that port 0 became."""
        host, port = self._socket.getsockname()[:2]
        return Address(host, port)

    def close(self) -> None:
        """Lets running requests end. Safe to call twice."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._socket.close()
