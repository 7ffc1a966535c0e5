"""What stands before every route: an id, a key, a whole body of bounded size. Plain ASGI: strangers cost little."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.keys import Holder, bearer

REQUEST_ID = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
OPEN = frozenset({"/health", "/ready"})
"""What probes ask without a key."""


class Gate:
    """Lets requests through to an application.

    The request's state gets ``request_id`` and ``holder``.

    Args:
        holder: whose key this is; None for nobody's. Called with None where there is no key.
        max_body_bytes, receive_s: how much a request may bring, and how long that may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        holder: Callable[[str | None], Holder | None],
        max_body_bytes: int,
        receive_s: float,
    ) -> None:
        self._app = app
        self._holder = holder
        self._max_body_bytes = max_body_bytes
        self._receive_s = receive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID)
        request_id = asked if asked and _ID.fullmatch(asked) else f"req-{uuid.uuid4().hex}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            if asked and request_id != asked:
                raise ApiError(
                    400,
                    "X-Request-Id takes 1 to 128 letters, digits and . _ : -",
                    code="invalid_request_id",
                    param=REQUEST_ID,
                )
            state = scope.setdefault("state", {})
            state["request_id"] = request_id
            if scope["path"] not in OPEN:
                holder = self._admit(headers)
                state["holder"] = holder
                # Who did it, in the records of the control channel.
                scope["client"] = (f"key {holder.name}", 0) if holder.sha256 else scope["client"]
            body = await self._body(headers, receive)
        except ApiError as error:
            await error.response(scope["path"])(scope, receive, send_with_id)
            return
        await self._app(scope, _replayed(body, receive), send_with_id)

    def _admit(self, headers: Headers) -> Holder:
        # Anthropic's clients have a header of their own.
        key = bearer(headers.get("authorization")) or headers.get("x-api-key")
        holder = self._holder(key)
        if holder is None:
            raise ApiError(
                401,
                "Incorrect API key provided." if key else "You didn't provide an API key.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return holder

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(receive), self._receive_s)
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                "The request took too long to arrive.",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        n_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The request ended in its middle.", code="disconnected")
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than {self._max_body_bytes} bytes.",
            code="request_too_large",
            headers={"connection": "close"},
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body once, and then what comes after it: the client's going away."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
