"""Requests as OpenAI's clients send them. What would change the meaning and is not carried out, is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scope_runtime.llama.sampling import MAX_STOP_CHARS, MAX_STOPS, MAX_TOP_LOGPROBS
from scope_runtime.serve.errors import ApiError
from scope_runtime.types import MAX_SEED

MAX_ANSWERS = 64
"""Of one request: prompts times ``n``."""

MAX_TEXTS = 2048
"""That one request may have embedded."""

HARMLESS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "parallel_tool_calls prediction cache_prompt".split()
)
"""Parameters that change nothing in what is answered here."""

_TOKENS = Annotated[int, Field(ge=1, le=2**31 - 1)]
_STOP = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class Model(BaseModel):
    """A part of a request; what is not known of it is kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class StreamOptions(Model):
    """What a stream ends with."""

    include_usage: bool | None = False


class ScopeWish(BaseModel):
    """Ours: what the answer should say of the policies."""

    model_config = ConfigDict(extra="forbid")
    explain: bool = False


class JsonSchema(Model):
    """OpenAI's wrapping of a JSON schema."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=dict)


class ResponseFormat(Model):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Request(Model):
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = 1
    stop: _STOP | Annotated[list[_STOP], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    scope: ScopeWish | None = None


class CompletionRequest(_Request):
    """``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_ANSWERS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_ANSWERS),
        ]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class ChatMessage(Model):
    """One message of a chat. ``content`` may be a list of parts of type ``text``."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(_Request):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: _TOKENS | None = None
    max_completion_tokens: _TOKENS | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


Request = CompletionRequest | ChatRequest


class EmbeddingRequest(Model):
    """``POST /v1/embeddings``."""

    model: str | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_TEXTS),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    scope: ScopeWish | None = None


def passed_on(request: Request, takes: frozenset[str]) -> dict[str, Any]:
    """Parameters beyond the schema that the engine takes itself; None and what is empty asks for nothing.

    Raises:
        ApiError: one that would change the answer is not carried out here.
    """
    extra = request.model_extra or {}
    idle: dict[str, tuple[object, ...]] = {"best_of": (1, request.n or 1)}
    if not extra.get("tools"):
        idle["tool_choice"] = ("none", "auto")
    return taken(extra, idle, takes)


def taken(
    extra: Mapping[str, Any],
    idle: Mapping[str, tuple[object, ...]] = {},
    takes: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Those of the parameters that the engine takes; ``idle`` are values that ask for nothing. See ``passed_on``."""
    out = {}
    for name, value in extra.items():
        if value in (None, False, [], "") or name in HARMLESS or value in idle.get(name, ()):
            continue
        if name not in takes:
            raise ApiError(
                400,
                f"The parameter {name[:64]!r} is not supported by this engine.",
                code="unsupported_parameter",
                param=name[:64],
            )
        out[name] = value
    return out


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of one of several answers; any integer is one."""
    return None if seed is None else (seed + index) % (MAX_SEED + 1)
