"""The routes of OpenAI's API, and those of probes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from scope_runtime.errors import ScopeError
from scope_runtime.serve.dialect import Teller
from scope_runtime.serve.dialect import answered as in_dialect
from scope_runtime.serve.documented import (
    REFUSED,
    REFUSED_ANTHROPIC,
    Alive,
    ChatAnswer,
    CompletionAnswer,
    MessagesAnswer,
    ModelCard,
    ModelList,
    Readiness,
    ResponsesAnswer,
    VectorsAnswer,
    answered,
)
from scope_runtime.serve.errors import ANTHROPIC, ApiError, JsonResponse, internal, refused
from scope_runtime.serve.gate import Gate
from scope_runtime.serve.gateway import ANYBODY, Gateway, log_fault
from scope_runtime.serve.keys import Holder
from scope_runtime.serve.labels import labels_of
from scope_runtime.serve.messages import MessagesRequest, MessagesTeller
from scope_runtime.serve.messages import chat_of as messages_chat
from scope_runtime.serve.parse import asks_of
from scope_runtime.serve.respond import ClientGone, Wanted, stream, whole
from scope_runtime.serve.responses import ResponsesRequest, ResponsesTeller
from scope_runtime.serve.responses import chat_of as responses_chat
from scope_runtime.serve.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from scope_runtime.serve.shapes import Chat, Completion, Shape
from scope_runtime.serve.vectors import vectors
from scope_runtime.version import __version__

_SHOWN = 300


def public_app(gateway: Gateway) -> ASGIApp:
    """What users reach."""
    keys = gateway.keys

    def holder(key: str | None) -> Holder | None:
        if keys.path is None:
            return ANYBODY
        return keys.holder(key) if key is not None else None

    options = gateway.options
    return Gate(routes(gateway), holder, options.max_body_bytes, options.receive_s)


def routes(gateway: Gateway) -> FastAPI:
    """The routes themselves, without what stands before them."""
    app = FastAPI(
        title="Scope Runtime",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=REFUSED,
    )
    bearer = [Security(HTTPBearer(auto_error=False))] if gateway.keys.path is not None else []
    _add_errors(app)
    models = [
        {
            "id": gateway.model,
            "object": "model",
            "created": gateway.created,
            "owned_by": "scope-runtime",
        }
    ]

    @app.get("/health", responses=answered(Alive), response_model=None)
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", responses={**answered(Readiness), 503: {"model": Readiness}})
    async def ready() -> Response:
        why = gateway.not_ready()
        return JsonResponse(
            {"ready": why is None, "reason": why}, status_code=200 if why is None else 503
        )

    @app.get("/v1/models", responses=answered(ModelList), dependencies=bearer)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}", responses=answered(ModelCard), dependencies=bearer)
    async def get_model(name: str) -> dict[str, Any]:
        _check_model(gateway, name)
        return models[0]

    @app.post(
        "/v1/completions",
        responses=answered(CompletionAnswer, streamed=True),
        dependencies=bearer,
    )
    async def complete(request: Request, wanted: CompletionRequest) -> Response:
        return await _answer(gateway, request, wanted, Completion())

    @app.post(
        "/v1/chat/completions",
        responses=answered(ChatAnswer, streamed=True),
        dependencies=bearer,
    )
    async def chat(request: Request, wanted: ChatRequest) -> Response:
        return await _answer(gateway, request, wanted, Chat())

    @app.post(
        "/v1/responses",
        responses=answered(ResponsesAnswer, streamed=True),
        dependencies=bearer,
    )
    async def respond(request: Request, wanted: ResponsesRequest) -> Response:
        about = request.state.request_id, gateway.model, gateway.now()
        teller = ResponsesTeller(*about, wanted)
        return await _in_dialect(gateway, request, lambda: responses_chat(wanted), teller)

    @app.post(
        ANTHROPIC,
        responses={**answered(MessagesAnswer, streamed=True), **REFUSED_ANTHROPIC},
        dependencies=bearer,
    )
    async def messages(request: Request, wanted: MessagesRequest) -> Response:
        teller = MessagesTeller(request.state.request_id, gateway.model)
        return await _in_dialect(gateway, request, lambda: messages_chat(wanted), teller)

    @app.post("/v1/embeddings", responses=answered(VectorsAnswer), dependencies=bearer)
    async def embeddings(request: Request, wanted: EmbeddingRequest) -> Response:
        _check_model(gateway, wanted.model)
        state = request.state
        labels = _labels(gateway, request)
        try:
            return await vectors(
                gateway, wanted, labels, state.holder, state.request_id, request.receive
            )
        except ClientGone:
            return Response(status_code=499)

    return app


def _check_model(gateway: Gateway, name: str | None) -> None:
    if name is not None and name != gateway.model:
        raise ApiError(
            404,
            f"The model {name[:_SHOWN]!r} does not exist; this server has {gateway.model!r}.",
            code="model_not_found",
            param="model",
        )


def _labels(gateway: Gateway, request: Request) -> dict[str, str]:
    options = gateway.options
    header = request.headers.get(options.label_header)
    return labels_of(request.state.holder.labels, header, options.labels, options.label_header)


async def _answer(
    gateway: Gateway, request: Request, wanted: CompletionRequest | ChatRequest, shape: Shape
) -> Response:
    _check_model(gateway, wanted.model)
    labels = _labels(gateway, request)
    engine = gateway.engine
    request_id = request.state.request_id
    asks = await asyncio.to_thread(asks_of, wanted, labels, request_id, engine.takes)
    told = Wanted(
        shape=shape,
        model=gateway.model,
        created=gateway.now(),
        request_id=request_id,
        asks=asks,
        n=wanted.n or 1,
        explain=wanted.scope is not None and wanted.scope.explain,
        include_usage=bool(wanted.stream_options and wanted.stream_options.include_usage),
        scored=asks[0].sampling.top_logprobs is not None,
    )
    job = gateway.job(engine.answer, asks, labels, request.state.holder)
    try:
        if wanted.stream:
            return await stream(job, told, request.receive)
        return await whole(job, told, request.receive)
    except ClientGone:
        return Response(status_code=499)


async def _in_dialect(
    gateway: Gateway, request: Request, chat_of: Callable[[], ChatRequest], teller: Teller
) -> Response:
    chat = await asyncio.to_thread(chat_of)
    _check_model(gateway, chat.model)
    labels, state = _labels(gateway, request), request.state
    try:
        return await in_dialect(
            gateway, chat, labels, state.holder, state.request_id, request.receive, teller
        )
    except ClientGone:
        return Response(status_code=499)


def _add_errors(app: FastAPI) -> None:
    """Every way to fail, in the shape of the route that was asked."""

    @app.exception_handler(ScopeError)
    async def scope_error(request: Request, error: ScopeError) -> Response:
        told = refused(error)
        if told.status >= 500 and not isinstance(error, ApiError):
            log_fault(error)
        return told.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "")
        if not kind.split(";")[0].strip().lower().endswith("json"):
            # FastAPI reads no other body as JSON: a page of another origin could send one unasked.
            return ApiError(
                415,
                f"The body must be JSON, and say so; found Content-Type: {kind[:_SHOWN] or 'none'}, "
                "expected application/json.",
                code="unsupported_media_type",
            ).response(request.url.path)
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        param = ".".join(place)[:_SHOWN] or None
        at = f" (at {param})" if param else ""
        told = ApiError(400, f"{first['msg']}{at}", code="invalid_value", param=param)
        return told.response(request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        told = ApiError(error.status_code, str(error.detail), headers=error.headers)
        if error.status_code == 404:
            place = f"{request.method} {request.url.path}"[:_SHOWN]
            told = ApiError(404, f"Unknown request URL: {place}.", code="unknown_url")
        return told.response(request.url.path)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        # What was wrong is told by the server that calls this, which gets the exception as well.
        return internal().response(request.url.path)
