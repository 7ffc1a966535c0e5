"""Errors as OpenAI's clients know them, ``{"error": {"message", "type", "param", "code"}}``, or as Anthropic's do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response

from scope_runtime.errors import AuditError, ScopeError, UsageError

INVALID = "invalid_request_error"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "timeout_error",
}
ANTHROPIC = "/v1/messages"
"""The route whose errors have Anthropic's shape, and what is below it."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(ScopeError):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        code: a word that programs can look at.
        param: the parameter that is wrong.
        retry_after_s: when to try again; None says nothing of it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as it is sent."""
        kind = _TYPES.get(self.status, INVALID)
        about = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": about}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The error as Anthropic's clients know it; ``code`` and ``param`` are beside what they look at."""
        kind = "api_error" if self.status >= 500 else INVALID
        kind = _ANTHROPIC_TYPES.get(self.status, kind)
        about = {"type": kind, "message": self.message, "param": self.param, "code": self.code}
        return {"type": "error", "error": about}

    @property
    def headers(self) -> dict[str, str]:
        after = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**self._headers, **after}

    def response(self, path: str = "") -> Response:
        """The whole answer, in the shape of the route that was asked."""
        theirs = path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/")
        body = self.anthropic_body if theirs else self.body
        return JsonResponse(body, status_code=self.status, headers=self.headers)


def refused(error: ScopeError) -> ApiError:
    """What the engine says, as a caller may read it: their own mistakes in full, ours without what lies behind."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, AuditError):
        message = "The server cannot put requests on record at the moment, and serves none without."
        return ApiError(503, message, code="not_on_record", retry_after_s=30)
    return internal()


def no_embeddings(why: str) -> ApiError:
    """What ``/v1/embeddings`` says where there are none."""
    return ApiError(400, f"This server computes no embeddings. {why}", code="no_embeddings")


def internal() -> ApiError:
    """A fault of the server; what it was stands in the server's own log."""
    return ApiError(500, "The server failed on this request.", code="internal_error")


def json_bytes(data: object) -> bytes:
    """JSON as UTF-8. Half a pair of surrogates, which a client may have sent, stays an escape."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A JSON answer that cannot fail on what it quotes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_bytes(content)
