"""What the routes answer, as the OpenAPI document says it. Tests hold answers against it; nothing is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(BaseModel):
    """What was wrong; ``code`` is a word that programs can look at."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    model_config = ConfigDict(extra="forbid")
    error: ErrorDetail


class AnthropicError(_Told):
    """What was wrong, in Anthropic's words."""

    type: str
    message: str


class AnthropicErrorBody(_Told):
    """Anthropic's shape of an error."""

    type: Literal["error"]
    error: AnthropicError


class Alive(_Told):
    """``/health``."""

    status: Literal["alive"]


class Readiness(_Told):
    """``/ready``."""

    ready: bool
    reason: str | None


class ModelCard(_Told):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Told):
    """``/v1/models``."""

    object: Literal["list"]
    data: list[ModelCard]


class Span(_Told):
    """From this position on the revision held; of several answers together, without positions."""

    revision: str
    from_position: int | None = None


class ScopeOfAnswer(_Told):
    """What was done to one answer."""

    request_id: str
    revisions: list[Span]
    interventions: int
    finish_reason: str | None
    report: list[dict[str, Any]] | None = None


class ScopeOfAnswers(_Told):
    """What was done to each of several answers."""

    revisions: list[Span]
    choices: list[ScopeOfAnswer]


_Scope = ScopeOfAnswer | ScopeOfAnswers


class TokenCounts(_Told):
    """Tokens of the request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class CompletionChoice(_Told):
    """One answer."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class CompletionAnswer(_Told):
    """``/v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenCounts
    scope: _Scope


class ChatChoice(_Told):
    """One answer."""

    index: int
    message: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatAnswer(_Told):
    """``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenCounts
    scope: _Scope


class ResponsesAnswer(_Told):
    """``/v1/responses``."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    scope: _Scope


class MessagesAnswer(_Told):
    """``/v1/messages``."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    usage: dict[str, Any]
    scope: _Scope


class VectorOfText(_Told):
    """One text's embedding: numbers, or base64 of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float], Field(min_length=1)] | str


class VectorsAnswer(_Told):
    """``/v1/embeddings``."""

    object: Literal["list"]
    data: list[VectorOfText]
    model: str
    usage: TokenCounts
    scope: _Scope


Responses = dict[int | str, dict[str, Any]]

REFUSED: Responses = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
REFUSED_ANTHROPIC: Responses = {
    "4XX": {"model": AnthropicErrorBody},
    "5XX": {"model": AnthropicErrorBody},
}


def answered(model: type[BaseModel], *, streamed: bool = False) -> Responses:
    """An answer of this shape, streamed too where the request asks for it."""
    events: dict[str, Any] = {"text/event-stream": {"schema": {}}} if streamed else {}
    return {200: {"model": model, "content": events}}
