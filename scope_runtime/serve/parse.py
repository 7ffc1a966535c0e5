"""A checked request, as the answers that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scope_runtime.llama.grammar import ANY_OBJECT, schema_grammar
from scope_runtime.llama.sampling import Sampling
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.schemas import (
    MAX_ANSWERS,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Request,
    passed_on,
    seed_of,
)

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
FORM = "response_format"
"""What an engine may take itself; for others it becomes a grammar."""
_TO_THE_END = 2**31 - 1
"""Most tokens of a chat's answer where nothing is said: what the context holds."""


def asks_of(
    request: Request, labels: Mapping[str, str], request_id: str, takes: frozenset[str]
) -> list[Ask]:
    """Prompt by prompt, each ``n`` times: the order of OpenAI's ``choices``.

    May take a moment, for a schema's grammar: not for the event loop.

    Raises:
        ApiError, UsageError: what is asked cannot be carried out.
    """
    passed = passed_on(request, takes)
    prompts = _prompts(request, takes)
    n = request.n or 1
    if len(prompts) * n > MAX_ANSWERS:
        raise ApiError(
            400,
            f"{len(prompts)} prompts times n={n} are more than {MAX_ANSWERS} answers.",
            code="invalid_value",
            param="n",
        )
    drawn = _sampling(request, takes)
    if FORM in takes and request.response_format is not None:
        passed[FORM] = request.response_format.model_dump(by_alias=True, exclude_unset=True)
    count = len(prompts) * n
    return [
        Ask(
            prompt=prompt if not isinstance(prompt, Messages) else None,
            messages=tuple(prompt) if isinstance(prompt, Messages) else None,
            sampling=replace(drawn, seed=seed_of(request.seed, index)),
            labels=labels,
            request_id=request_id if count == 1 else f"{request_id}.{index}",
            passed=passed,
        )
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(n))
    ]


class Messages(tuple[Mapping[str, Any], ...]):
    """A chat, told from a prompt of token ids by its type."""

    __slots__ = ()


def _prompts(
    request: Request, takes: frozenset[str]
) -> list[str | tuple[int, ...]] | list[Messages]:
    if isinstance(request, ChatRequest):
        return [Messages(_message(i, each, takes) for i, each in enumerate(request.messages))]
    return texts_of(request.prompt)


def texts_of(given: Any) -> list[str | tuple[int, ...]]:
    """A text or token ids, or a list of either, as a list."""
    texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [each if isinstance(each, str) else tuple(each) for each in texts]


def _message(index: int, message: ChatMessage, takes: frozenset[str]) -> dict[str, Any]:
    if "messages" in takes:
        return message.model_dump(exclude_unset=True)
    where = f"messages[{index}]"
    if message.role not in _ROLES:
        raise ApiError(
            400,
            f"The role {message.role[:32]!r} is not supported by this engine; "
            f"it takes {', '.join(_ROLES)}.",
            code="unsupported_value",
            param=f"{where}.role",
        )
    extra = sorted(key for key, value in (message.model_extra or {}).items() if value)
    unknown = [key for key in extra if key not in ("name", "refusal", "annotations")]
    if unknown:
        raise ApiError(
            400,
            f"{unknown[0][:64]!r} in a message is not supported by this engine.",
            code="unsupported_parameter",
            param=f"{where}.{unknown[0][:64]}",
        )
    return {"role": _ROLES[message.role], "content": _text(message.content, f"{where}.content")}


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400,
                "Only parts of type text are supported by this engine.",
                code="unsupported_value",
                param=where,
            )
    return "".join(part["text"] for part in content)


def _sampling(request: Request, takes: frozenset[str]) -> Sampling:
    """The seed is left to each answer."""
    asked: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": _bias(request.logit_bias),
        "stop": (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        "grammar": _grammar(request, takes),
        "max_tokens": _max_tokens(request),
        "top_logprobs": _top_logprobs(request),
    }
    return Sampling(**{name: value for name, value in asked.items() if value is not None})


def _max_tokens(request: Request) -> int:
    if isinstance(request, CompletionRequest):
        return 16 if request.max_tokens is None else request.max_tokens
    return request.max_completion_tokens or request.max_tokens or _TO_THE_END


def _top_logprobs(request: Request) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise ApiError(
            400,
            "top_logprobs needs logprobs to be true.",
            code="invalid_value",
            param="top_logprobs",
        )
    return None


def _bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in bias):
        raise ApiError(
            400,
            "logit_bias maps token ids to numbers.",
            code="invalid_value",
            param="logit_bias",
        )
    return {int(token): value for token, value in bias.items()}


def _grammar(request: Request, takes: frozenset[str]) -> str | None:
    form = request.response_format
    if form is None or form.type == "text" or FORM in takes:
        return request.grammar
    if request.grammar is not None:
        raise ApiError(
            400,
            "An answer follows a grammar or a response_format, not both.",
            code="invalid_value",
            param="grammar",
        )
    if form.type == "json_object":
        return schema_grammar(ANY_OBJECT)
    if form.json_schema is None:
        raise ApiError(
            400,
            "A response_format of type json_schema needs json_schema.",
            code="invalid_value",
            param="response_format",
        )
    return schema_grammar(form.json_schema.schema_)
