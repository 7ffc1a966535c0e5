"""The control channel: HTTP over a Unix socket that only its owner can open.

    GET  /health /ready /metrics                         for probes and Prometheus
    GET  /-/policies /-/plan /-/events /-/alerts         what is in force, what a reload would change, what happened,
                                                         what fires now
    POST /-/reload /-/off /-/on /-/rollback              the four things that operators do
    POST /-/redact                                       erase prompts and outputs beside the audit log

A POST may carry ``{"reason": …}``, a rollback ``{"to": REVISION}``, a redaction ``{"request_id": ID}`` or ``{"before":
SECONDS}``, and both a reload and a rollback ``If-Match:
"REVISION"``. It answers when the thing is done, or with the whole error.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry
from uvicorn.protocols.http.h11_impl import H11Protocol

from scope_runtime.audit.redact import Selection
from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.listen import Served, unix_socket
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.probes import add_probes
from scope_runtime.lifecycle.report import plan_data, status_data
from scope_runtime.lifecycle.state import StateError
from scope_runtime.lifecycle.types import Cause, Outcome, StaleRevision

_PEER = struct.Struct("3i")  # pid, uid, gid

Why = Annotated[dict[str, str] | None, Body()]
IfMatch = Annotated[str | None, Header()]


def control_app(lifecycle: Lifecycle, follower: Follower, registry: CollectorRegistry) -> FastAPI:
    """The routes, to be served at a socket or mounted by a server."""
    app = FastAPI(title="Scope Runtime control", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ScopeError)
    def refused(request: Request, error: ScopeError) -> JSONResponse:
        return JSONResponse(error.fields() | {"text": str(error)}, status_code=_status_of(error))

    add_probes(app, lifecycle, registry)

    @app.get("/-/policies")
    def policies(response: Response) -> dict[str, Any]:
        response.headers["ETag"] = f'"{lifecycle.current.revision}"'
        return status_data(lifecycle, follower)

    @app.get("/-/plan")
    def plan() -> dict[str, Any]:
        return plan_data(*lifecycle.plan())

    @app.get("/-/events")
    def events(last: int = 100, kind: str | None = None) -> list[dict[str, Any]]:
        found = [each for each in lifecycle.events() if kind is None or each.kind == kind]
        return [event.record() for event in found[-max(last, 1) :]]

    @app.get("/-/alerts")
    def alerts() -> dict[str, Any]:
        if lifecycle.alerts is None:
            raise UsageError(
                "this process keeps no alerts", expected="a section spec.alerts in its scope.yaml"
            )
        return lifecycle.alerts()

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
        note = lifecycle.off(_cause(request, why))
        return status_data(lifecycle, follower) | {"note": note}

    @app.post("/-/on")
    def on(request: Request, why: Why = None) -> dict[str, Any]:
        lifecycle.on(_cause(request, why))
        return status_data(lifecycle, follower)

    @app.post("/-/redact")
    def redact(request: Request, why: Why = None) -> dict[str, Any]:
        said, cause = why or {}, _cause(request, why)
        if lifecycle.audit is None:
            raise UsageError("this process keeps no audit log")
        if not cause.reason:
            raise UsageError("no reason is given")
        try:
            before = float(said["before"]) if "before" in said else None
        except ValueError:
            raise UsageError("this is no time", found=said["before"], expected="seconds") from None
        done = lifecycle.audit.redact(
            Selection(said.get("request_id"), before), cause.actor, cause.reason
        )
        return {"n_openings": done.n_openings, "n_requests": done.n_requests}

    return app


def _status_of(error: ScopeError) -> int:
    if isinstance(error, StaleRevision):
        return 412
    return 404 if isinstance(error, StateError) else 422


def _cause(request: Request, why: dict[str, str] | None) -> Cause:
    return Cause("control", actor_of(request), (why or {}).get("reason"))


def actor_of(request: Request) -> str:
    """Who asks: the user at the other end of the socket, or the key's name."""
    return request.client.host if request.client else "unknown"


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


def peer_protocol() -> type[H11Protocol]:
    """For whoever serves the routes at a Unix socket: records name who asked."""
    return _PeerProtocol


class ControlServer(Served):
    """Serves the control channel on a thread of its own.

    Args:
        path: the socket; its directory is made if missing. A socket that nobody answers at is replaced.

    Raises:
        UsageError: another process serves there, or the socket cannot be made.
    """

    def __init__(
        self, path: Path, lifecycle: Lifecycle, follower: Follower, registry: CollectorRegistry
    ) -> None:
        self.path = path
        app = control_app(lifecycle, follower, registry)
        super().__init__(app, unix_socket(path), "scope-control", _PeerProtocol)

    def close(self) -> None:
        """Lets running requests end, then removes the socket. Safe to call twice."""
        super().close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
