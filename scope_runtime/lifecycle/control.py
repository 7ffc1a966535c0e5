"""The control channel: HTTP over a Unix socket that only its owner can open.

    GET  /health /ready /metrics                         for probes and Prometheus
    GET  /-/policies /-/plan /-/events                   what is in force, what a reload would change, what happened
    POST /-/reload /-/off /-/on /-/rollback              the four things that operators do

A POST may carry ``{"reason": …}``, a rollback ``{"to": REVISION}``, and both a reload and a rollback ``If-Match:
"REVISION"``. It answers when the thing is done, or with the whole error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Header, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from scope_runtime.errors import Location, ScopeError, UsageError
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.report import metrics_text, plan_data, status_data
from scope_runtime.lifecycle.state import StateError
from scope_runtime.lifecycle.types import Cause, Outcome, StaleRevision

_BACKLOG = 16
_PEER = struct.Struct("3i")  # pid, uid, gid

Why = Annotated[dict[str, str] | None, Body()]
IfMatch = Annotated[str | None, Header()]


def control_app(lifecycle: Lifecycle, follower: Follower) -> FastAPI:
    """The routes, to be served at a socket or mounted by a server."""
    app = FastAPI(title="Scope Runtime control", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ScopeError)
    def refused(request: Request, error: ScopeError) -> JSONResponse:
        return JSONResponse(error.fields() | {"text": str(error)}, status_code=_status_of(error))

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready")
    def ready(response: Response) -> dict[str, object]:
        loaded = bool(lifecycle.current.policies) or lifecycle.options.fail == "open"
        response.status_code = 200 if loaded else 503
        return {"ready": loaded, "revision": lifecycle.revision}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics_text(lifecycle), media_type="text/plain; version=0.0.4")

    @app.get("/-/policies")
    def policies(response: Response) -> dict[str, Any]:
        response.headers["ETag"] = f'"{lifecycle.current.revision}"'
        return status_data(lifecycle, follower)

    @app.get("/-/plan")
    def plan() -> dict[str, Any]:
        return plan_data(*lifecycle.plan())

    @app.get("/-/events")
    def events(last: int = 100) -> list[dict[str, Any]]:
        return [event.record() for event in lifecycle.events()[-max(last, 1) :]]

    @app.post("/-/reload")
    def reload(request: Request, why: Why = None, if_match: IfMatch = None) -> dict[str, Any]:
        return _done(lifecycle.reload(_cause(request, why), if_match=_revision(if_match)))

    @app.post("/-/rollback")
    def rollback(request: Request, why: Why = None, if_match: IfMatch = None) -> dict[str, Any]:
        to = (why or {}).get("to")
        cause = _cause(request, why)
        return _done(lifecycle.rollback(cause, to=to, if_match=_revision(if_match)))

    @app.post("/-/off")
    def off(request: Request, why: Why = None) -> dict[str, Any]:
        lifecycle.off(_cause(request, why))
        return status_data(lifecycle, follower)

    @app.post("/-/on")
    def on(request: Request, why: Why = None) -> dict[str, Any]:
        lifecycle.on(_cause(request, why))
        return status_data(lifecycle, follower)

    return app


def _status_of(error: ScopeError) -> int:
    if isinstance(error, StaleRevision):
        return 412
    return 404 if isinstance(error, StateError) else 422


def _cause(request: Request, why: dict[str, str] | None) -> Cause:
    actor = request.client.host if request.client else "unknown"
    return Cause("control", actor, (why or {}).get("reason"))


def _revision(if_match: str | None) -> str | None:
    """The revision of an If-Match header; ``*`` matches anything."""
    if if_match is None or if_match.strip() == "*":
        return None
    return if_match.strip().removeprefix("W/").strip('"')


def _done(outcome: Outcome) -> dict[str, Any]:
    return {
        "revision": outcome.revision,
        "previous": outcome.previous,
        "changed": outcome.changed,
        "note": outcome.note,
    }


class _PeerProtocol(H11Protocol):
    """HTTP/1.1 that knows who is at the other end of a Unix socket: the kernel says, not the client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        with contextlib.suppress(AttributeError, OSError, struct.error):
            found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            pid, uid, _ = _PEER.unpack(found)
            self.client = (f"uid {uid}", pid)


class ControlServer:
    """Serves the control channel on a thread of its own.

    Args:
        path: the socket; its directory is made if missing. A socket that nobody answers at is replaced.

    Raises:
        UsageError: another process serves there, or the socket cannot be made.
    """

    def __init__(self, path: Path, lifecycle: Lifecycle, follower: Follower) -> None:
        self.path = path
        self._socket = _listen(path)
        config = uvicorn.Config(
            control_app(lifecycle, follower),
            http=_PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="scope-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Lets running requests end, then removes the socket. Safe to call twice."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket() and not _answers(path):
            path.unlink()
        # Born closed to others: the mode of a socket that is changed after bind was open for a moment.
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(_BACKLOG)
    except OSError as reason:
        made.close()
        raise UsageError(
            "the control socket cannot be made",
            location=Location(str(path)),
            found=reason.strerror or str(reason),
            hint="Does another process serve there?" if path.exists() else None,
        ) from None
    return made


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
