"""``/v1/messages``: Anthropic's way to ask for a chat, and how it tells the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from scope_runtime.serve.dialect import Block, Event, as_chat, form_of, only, text_at, tool, unknown
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.schemas import ChatRequest, Model, ScopeWish
from scope_runtime.serve.shapes import Told

_CACHES = ("cache_control",)  # what is kept of a prompt is the engine's affair
_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "abort": "refusal"}


class Message(Model):
    """One message; ``content`` may be a list of blocks: text, image, thinking, tool_use, tool_result."""

    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class MessagesRequest(Model):
    """``POST /v1/messages``."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    scope: ScopeWish | None = None


def chat_of(wanted: MessagesRequest) -> ChatRequest:
    """The same as a chat.

    Raises:
        ApiError: it has what is not carried out here.
    """
    messages = [] if wanted.system is None else [_system(wanted.system)]
    for index, message in enumerate(wanted.messages):
        messages += _messages(message, f"messages[{index}]")
    tools, choice = _tools(wanted)
    config = wanted.output_config or {}
    return as_chat(
        {
            "model": wanted.model,
            "messages": messages,
            "max_tokens": wanted.max_tokens,
            "stop": wanted.stop_sequences or None,
            "stream": wanted.stream,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "top_k": wanted.top_k,
            "tools": tools,
            "tool_choice": choice,
            "scope": wanted.scope,
            "reasoning_effort": config.get("effort"),
            "response_format": form_of(config.get("format"), "output_config.format"),
            **_thinking(wanted.thinking),
        },
        {name: each for name, each in (wanted.model_extra or {}).items() if name not in _CACHES},
    )


def _system(system: str | list[dict[str, Any]]) -> dict[str, Any]:
    if isinstance(system, str):
        return {"role": "system", "content": system}
    texts = [text_at(block, "text", f"system[{i}]") for i, block in enumerate(system)]
    return {"role": "system", "content": "".join(texts)}


def _messages(message: Message, where: str) -> Iterator[dict[str, Any]]:
    """One message of a chat for each thing that a message here is."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for index, block in enumerate(message.content):
        at, kind = f"{where}.content[{index}]", block.get("type")
        if kind == "tool_result":
            # They answer the calls of the message before, and come before what its user says to that.
            yield _result(block, at)
        elif kind == "tool_use":
            calls.append(_call(block, at))
        elif kind == "thinking":
            thoughts.append(text_at(block, "thinking", at))
        elif kind != "redacted_thinking":  # which nobody here can read
            parts.append(_part(block, at))
    if parts or calls or thoughts:
        yield {
            "role": message.role,
            "content": parts[0]["text"] if [*map(_is_text, parts)] == [True] else parts or "",
            **({"tool_calls": calls} if calls else {}),
            **({"reasoning_content": "".join(thoughts)} if thoughts else {}),
        }


def _is_text(part: Mapping[str, Any]) -> bool:
    return bool(part["type"] == "text")


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": text_at(block, "text", where)}
    if kind != "image":
        raise unknown(kind, where)
    source = block.get("source")
    if not isinstance(source, Mapping):
        raise ApiError(400, "An image needs a source.", code="invalid_value", param=where)
    if source.get("type") == "base64":
        about = text_at(source, "media_type", f"{where}.source")
        url = f"data:{about};base64,{text_at(source, 'data', f'{where}.source')}"
    elif source.get("type") == "url":
        url = text_at(source, "url", f"{where}.source")
    else:
        raise unknown(source.get("type"), f"{where}.source")
    return {"type": "image_url", "image_url": {"url": url}}


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": text_at(block, "name", where), "arguments": arguments}
    return {"id": text_at(block, "id", where), "type": "function", "function": function}


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content") or ""
    if isinstance(content, list):
        blocks = [each if isinstance(each, Mapping) else {} for each in content]
        content = [_part(each, f"{where}.content[{i}]") for i, each in enumerate(blocks)]
        if all(map(_is_text, content)):
            content = "".join(part["text"] for part in content)
    elif not isinstance(content, str):
        raise ApiError(400, "A result is text or blocks.", code="invalid_value", param=where)
    name = text_at(block, "tool_use_id", where)
    return {"role": "tool", "tool_call_id": name, "content": content}


def _tools(wanted: MessagesRequest) -> tuple[list[dict[str, Any]] | None, str | None]:
    """Functions, and whether one must be called."""
    tools = []
    for index, each in enumerate(wanted.tools or ()):
        where = f"tools[{index}]"
        if each.get("type") not in (None, "custom"):
            raise unknown(each.get("type"), where)  # they are for a server that acts by itself
        tools.append(
            tool(each.get("name"), each.get("description"), each.get("input_schema"), where)
        )
    choice = wanted.tool_choice or {}
    kind = choice.get("type")
    if kind == "tool":
        return only(tools, choice.get("name")), "required"
    if kind not in (None, "auto", "any", "none"):
        raise unknown(kind, "tool_choice")
    return tools or None, "required" if kind == "any" else kind if tools else None


def _thinking(thinking: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the model's template is told; its kind of thinking is the model's own."""
    kind = (thinking or {}).get("type")
    if kind in (None, "adaptive"):
        return {}
    if kind not in ("enabled", "disabled"):
        raise unknown(kind, "thinking")
    told: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": kind == "enabled"}}
    budget = (thinking or {}).get("budget_tokens")
    if kind == "disabled" or budget is None:
        return told
    if type(budget) is not int or not 0 <= budget < 2**31:
        raise ApiError(
            400,
            "budget_tokens is a number of tokens.",
            code="invalid_value",
            param="thinking.budget_tokens",
        )
    return {**told, "thinking_budget_tokens": budget}


class MessagesTeller:
    """See ``Teller``."""

    def __init__(self, request_id: str, model: str) -> None:
        self._head = {"id": f"msg_{request_id}", "type": "message", "role": "assistant"}
        self._head |= {"model": model}

    def whole(self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]) -> Event:
        content = [_block(block) for block in blocks]
        return {**self._head, "content": content, **_stopped(told), "usage": _usage(told)} | {
            "scope": scope
        }

    def begin(self) -> Iterable[Event]:
        nothing = {"input_tokens": 0, "output_tokens": 0}  # the prompt's are told in the end
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        yield {"type": "message_start", "message": {**message, "usage": nothing}}

    def opened(self, block: Block) -> Iterable[Event]:
        empty = _block(Block(block.kind, block.index, "", block.call_id, block.name))
        yield {"type": "content_block_start", "index": block.index, "content_block": empty}

    def more(self, block: Block, text: str) -> Iterable[Event]:
        delta = {
            "text": {"type": "text_delta", "text": text},
            "thought": {"type": "thinking_delta", "thinking": text},
            "call": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        yield {"type": "content_block_delta", "index": block.index, "delta": delta}

    def closed(self, block: Block) -> Iterable[Event]:
        yield {"type": "content_block_stop", "index": block.index}

    def end(self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]) -> Iterable[Event]:
        yield {"type": "message_delta", "delta": _stopped(told), "usage": _usage(told)}
        yield {"type": "message_stop", "scope": scope}

    def failed(self, error: ApiError) -> Event:
        return error.anthropic_body


def _block(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {
        "type": "tool_use",
        "id": block.call_id,
        "name": block.name,
        "input": _input(block.text),
    }


def _input(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}", parse_constant=_no_json)
    except (ValueError, RecursionError):
        return {}  # cut off by ``max_tokens``, or nothing that can be told


def _no_json(name: str) -> None:
    """Of ``NaN`` and its like, which Python reads."""
    raise ValueError(name)


def _stopped(told: Told) -> dict[str, Any]:
    finish = told.done.finish_reason if told.done else ""
    return {"stop_reason": _STOP.get(finish, "end_turn"), "stop_sequence": None}


def _usage(told: Told) -> dict[str, int]:
    done = told.done
    if done is None:
        return {"input_tokens": 0, "output_tokens": 0}
    return {
        "input_tokens": done.n_prompt - done.n_reused,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": done.n_reused,
        "output_tokens": done.n_answer,
    }
