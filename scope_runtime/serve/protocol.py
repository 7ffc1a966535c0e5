"""HTTP/1.1 that waits for nobody for ever: not for a request's head, not for a client that does not read."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from scope_runtime.serve.errors import ApiError, json_bytes
from scope_runtime.serve.options import ServeOptions


def bounded(options: ServeOptions) -> type[H11Protocol]:
    """Uvicorn's protocol with the limits of these options."""

    class Bounded(_Bounded):
        limits = options

    return Bounded


class _Bounded(H11Protocol):
    limits: ServeOptions
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("_head_timer")
        self._cancel("_send_timer")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        """A head may arrive in pieces, but not for longer than a request may take."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._cancel("_head_timer")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.receive_s, self.transport.abort)

    # A client that does not read: the transport's buffer is full, and stays full.

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.limits.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel("_send_timer")
        super().resume_writing()

    def _cancel(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused as everything else is."""
        error = ApiError(400, msg, code="invalid_http")
        body = json_bytes(error.body)
        headers: list[Any] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for part in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
