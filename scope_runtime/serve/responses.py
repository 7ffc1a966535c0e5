"""``/v1/responses``: OpenAI's other way to ask for a chat, and how it tells the answer. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from scope_runtime.serve.dialect import Block, Event, as_chat, form_of, only, text_at, tool, unknown
from scope_runtime.serve.errors import ApiError, json_bytes
from scope_runtime.serve.schemas import ChatRequest, Model, ScopeWish
from scope_runtime.serve.shapes import Told

_ASK_NOTHING = {
    "include": ([], ["reasoning.encrypted_content"]),
    "truncation": ("disabled",),
    "background": (False,),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
    "top_logprobs": (0,),
}
"""Parameters that change nothing where they say no more than this."""


class ResponsesRequest(Model):
    """``POST /v1/responses``."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stream: bool | None = False
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    scope: ScopeWish | None = None


def chat_of(wanted: ResponsesRequest) -> ChatRequest:
    """The same as a chat.

    Raises:
        ApiError: it has what is not carried out here.
    """
    extra = {
        name: value
        for name, value in (wanted.model_extra or {}).items()
        if value is not None and value not in _ASK_NOTHING.get(name, ())
    }
    tools, choice = _tools(wanted)
    _check_told(wanted)
    return as_chat(
        {
            "model": wanted.model,
            "messages": _messages(wanted),
            "max_tokens": wanted.max_output_tokens,
            "stream": wanted.stream,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "tools": tools,
            "tool_choice": choice,
            "response_format": form_of((wanted.text or {}).get("format"), "text.format"),
            "reasoning_effort": (wanted.reasoning or {}).get("effort"),
            "scope": wanted.scope,
        },
        extra,
    )


def _check_told(wanted: ResponsesRequest) -> None:
    """Refuses what the answer could not say again."""
    for name in ("tools", "tool_choice"):
        try:
            json_bytes(getattr(wanted, name))
        except (ValueError, RecursionError):
            raise ApiError(400, f"{name} is no JSON.", code="invalid_value", param=name) from None


def _messages(wanted: ResponsesRequest) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if wanted.instructions:
        out.append({"role": "system", "content": wanted.instructions})
    if isinstance(wanted.input, str):
        return [*out, {"role": "user", "content": wanted.input}]
    for index, item in enumerate(wanted.input):
        where = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            _add_message(out, item, where)
        elif kind == "function_call":
            function = {key: text_at(item, key, where) for key in ("name", "arguments")}
            call = {"id": text_at(item, "call_id", where), "type": "function"}
            _assistant(out).setdefault("tool_calls", []).append(call | {"function": function})
        elif kind == "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            name = text_at(item, "call_id", where)
            out.append({"role": "tool", "tool_call_id": name, "content": content})
        elif kind == "reasoning":
            thoughts = [text_at(each, "text", where) for each in _mappings(item.get("content"))]
            if thoughts:  # else they are encrypted, by somebody else
                _assistant(out)["reasoning_content"] = "".join(thoughts)
        else:
            raise unknown(kind, where)
    return out


def _add_message(out: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role, content = text_at(item, "role", where), _content(item.get("content"), f"{where}.content")
    if role != "assistant":
        out.append({"role": role, "content": content})
        return
    last = _assistant(out)
    if last["content"]:
        out.append({"role": role, "content": content})
    else:
        last["content"] = content


def _assistant(out: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that several items in a row are parts of."""
    if not out or out[-1]["role"] != "assistant":
        out.append({"role": "assistant", "content": ""})
    return out[-1]


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, "Content is text or parts.", code="invalid_value", param=where)
    parts = [_part(part, f"{where}[{i}]") for i, part in enumerate(_mappings(content))]
    if [part["type"] for part in parts] == ["text"]:
        return str(parts[0]["text"])
    return parts


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": text_at(part, "text", where)}
    if kind == "refusal":
        return {"type": "text", "text": text_at(part, "refusal", where)}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": text_at(part, "image_url", where)}}
    raise unknown(kind, where)


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return (
        [each if isinstance(each, Mapping) else {} for each in value]
        if isinstance(value, list)
        else []
    )


def _tools(wanted: ResponsesRequest) -> tuple[list[dict[str, Any]] | None, Any]:
    """Functions, and whether one must be called."""
    tools = []
    for index, each in enumerate(wanted.tools or ()):
        where = f"tools[{index}]"
        if each.get("type") != "function":
            raise unknown(each.get("type"), where)  # they are for a server that acts by itself
        about = each.get("name"), each.get("description"), each.get("parameters")
        tools.append(tool(*about, where, strict=each.get("strict")))
    choice = wanted.tool_choice
    if isinstance(choice, Mapping):
        if choice.get("type") != "function":
            raise unknown(choice.get("type"), "tool_choice")
        return only(tools, choice.get("name")), "required"
    return tools or None, choice if tools else None


class ResponsesTeller:
    """See ``Teller``."""

    def __init__(self, request_id: str, model: str, created: int, wanted: ResponsesRequest) -> None:
        self._id = request_id
        self._n_events = 0
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": created,
            "model": model,
            "error": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": wanted.temperature,
            "tool_choice": wanted.tool_choice or "auto",
            "tools": wanted.tools or [],
            "top_p": wanted.top_p,
            "truncation": "disabled",
        }

    def whole(self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]) -> Event:
        finish = told.done.finish_reason if told.done else ""
        why = {"length": "max_output_tokens", "abort": "content_filter"}.get(finish)
        status = "completed" if why is None else "incomplete"
        return {
            **self._head,
            "status": status,
            "incomplete_details": None if why is None else {"reason": why},
            "output": [self._item(block, "completed") for block in blocks],
            "usage": _usage(told),
            "scope": scope,
        }

    def begin(self) -> Iterable[Event]:
        nothing: dict[str, Any] = {"incomplete_details": None, "output": [], "usage": None}
        response = {**self._head, "status": "in_progress", **nothing}
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def opened(self, block: Block) -> Iterable[Event]:
        empty = Block(block.kind, block.index, "", block.call_id, block.name)
        item = self._item(empty, "in_progress")
        if block.kind != "call":
            item["content"] = []
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            yield self._of(block, "content_part.added", content_index=0, part=_content_of(empty))

    def more(self, block: Block, text: str) -> Iterable[Event]:
        if block.kind == "call":
            yield self._of(block, "function_call_arguments.delta", delta=text)
        elif block.kind == "thought":
            yield self._of(block, "reasoning_text.delta", content_index=0, delta=text)
        else:
            yield self._of(block, "output_text.delta", content_index=0, delta=text, logprobs=[])

    def closed(self, block: Block) -> Iterable[Event]:
        if block.kind == "call":
            done = {"arguments": block.text, "name": block.name}
            yield self._of(block, "function_call_arguments.done", **done)
        else:
            if block.kind == "thought":
                yield self._of(block, "reasoning_text.done", content_index=0, text=block.text)
            else:
                text = {"text": block.text, "logprobs": []}
                yield self._of(block, "output_text.done", content_index=0, **text)
            yield self._of(block, "content_part.done", content_index=0, part=_content_of(block))
        item = self._item(block, "completed")
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def end(self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]) -> Iterable[Event]:
        response = self.whole(blocks, told, scope)
        yield self._event(f"response.{response['status']}", response=response, scope=scope)

    def failed(self, error: ApiError) -> Event:
        return self._event("error", **error.body["error"], **error.body)

    def _event(self, kind: str, /, **data: Any) -> Event:
        self._n_events += 1
        return {**data, "type": kind, "sequence_number": self._n_events - 1}

    def _of(self, block: Block, kind: str, /, **data: Any) -> Event:
        where = {"item_id": self._name(block), "output_index": block.index}
        return self._event(f"response.{kind}", **where, **data)

    def _name(self, block: Block) -> str:
        kind = {"thought": "rs", "text": "msg", "call": "fc"}[block.kind]
        return f"{kind}_{self._id}_{block.index}"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        head = {"id": self._name(block), "status": status}
        if block.kind == "call":
            about = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
            return {**head, "type": "function_call", **about}
        if block.kind == "thought":
            return {**head, "type": "reasoning", "summary": [], "content": [_content_of(block)]}
        return {**head, "type": "message", "role": "assistant", "content": [_content_of(block)]}


def _content_of(block: Block) -> dict[str, Any]:
    if block.kind == "thought":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _usage(told: Told) -> dict[str, Any]:
    n_prompt, n_reused, n_answer = (
        (told.done.n_prompt, told.done.n_reused, told.done.n_answer) if told.done else (0, 0, 0)
    )
    return {
        "input_tokens": n_prompt,
        "input_tokens_details": {"cached_tokens": n_reused, "cache_write_tokens": 0},
        "output_tokens": n_answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_prompt + n_answer,
    }
