"""A chat that is asked for in another API's words: its answer as a row of blocks, whole or as it comes.

Requests become the chat that the engine gets from everybody, so that whatever stands before that stands before these.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pydantic
from starlette.responses import Response
from starlette.types import Receive

from scope_runtime.llama.answer import Piece
from scope_runtime.serve.ask import Began, Extra, Item
from scope_runtime.serve.errors import ApiError, JsonResponse, json_bytes
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.jobs import Job, Of
from scope_runtime.serve.keys import Holder
from scope_runtime.serve.parse import asks_of
from scope_runtime.serve.respond import EventStream, headers_of, tell, unless_gone
from scope_runtime.serve.schemas import ChatRequest
from scope_runtime.serve.shapes import Told, scope_data

Event = dict[str, Any]
"""A server-sent event; its ``type`` is its name, too."""

ScopeOf = Callable[[Told], Mapping[str, Any]]

_OURS = frozenset(ChatRequest.model_fields) - {"seed", "min_p", "top_k", "grammar", "logit_bias"}
"""What a request must say in its own API's words, or not at all."""


@dataclass(slots=True)
class Block:
    """A part of an answer.

    Attributes:
        text: of a call, its arguments: JSON.
        call_id, name: of a call.
    """

    kind: Literal["thought", "text", "call"]
    index: int
    text: str = ""
    call_id: str = ""
    name: str = ""


class Teller(Protocol):
    """How an API tells one answer; each belongs to one request."""

    def whole(self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]) -> Event:
        """The body."""

    def begin(self) -> Iterable[Event]:
        """The events before the first block."""

    def opened(self, block: Block) -> Iterable[Event]: ...

    def more(self, block: Block, text: str) -> Iterable[Event]:
        """A block goes on; ``text`` is in it already."""

    def closed(self, block: Block) -> Iterable[Event]: ...

    def end(
        self, blocks: Sequence[Block], told: Told, scope: Mapping[str, Any]
    ) -> Iterable[Event]: ...

    def failed(self, error: ApiError) -> Event:
        """The last event, of an answer that ends so."""


def as_chat(wanted: Mapping[str, Any], extra: Mapping[str, Any]) -> ChatRequest:
    """A chat that is wanted so; ``extra`` is what the API does not know, and the engine may.

    Raises:
        ApiError: it is none.
    """
    for name in extra:
        if name in _OURS:
            raise ApiError(
                400,
                f"The parameter {name!r} is not one of this route's.",
                code="unsupported_parameter",
                param=name,
            )
    given = {name: value for name, value in wanted.items() if value is not None}
    try:
        return ChatRequest.model_validate({**extra, **given})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"]))[:300] or None
        raise ApiError(
            400, f"{first['msg']} (at {param})", code="invalid_value", param=param
        ) from None


def tool(name: Any, description: Any, parameters: Any, param: str, **more: Any) -> dict[str, Any]:
    """A function that the model may call, as a chat has it."""
    if not isinstance(name, str) or not name:
        raise ApiError(400, "A tool needs a name.", code="invalid_value", param=f"{param}.name")
    function = {"name": name, "description": description, "parameters": parameters, **more}
    told = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": told}


def only(tools: Sequence[dict[str, Any]], name: object) -> list[dict[str, Any]]:
    """Of the tools, the one that must be called; llama-server itself only knows that some must be."""
    found = [each for each in tools if each["function"]["name"] == name]
    if not found:
        raise ApiError(
            400, "tool_choice names no tool.", code="invalid_value", param="tool_choice.name"
        )
    return found


def form_of(form: Any, param: str) -> dict[str, Any] | None:
    """A format as a chat's ``response_format``."""
    if form is None:
        return None
    if not isinstance(form, Mapping):
        raise ApiError(400, "A format is an object.", code="invalid_value", param=param)
    if form.get("type") != "json_schema":
        return {"type": form.get("type")}
    schema = {name: form[name] for name in ("name", "schema", "strict") if name in form}
    return {"type": "json_schema", "json_schema": schema}


def text_at(block: Mapping[str, Any], key: str, where: str) -> str:
    """A text in a block of a request.

    Raises:
        ApiError: it has none there.
    """
    value = block.get(key)
    if not isinstance(value, str):
        raise ApiError(400, f"{key} is no text.", code="invalid_value", param=f"{where}.{key}")
    return value


def unknown(kind: object, where: str) -> ApiError:
    """What is said of a part that is not carried out."""
    return ApiError(
        400,
        f"{str(kind)[:64]!r} is not supported here.",
        code="unsupported_value",
        param=f"{where}.type",
    )


async def answered(
    gateway: Gateway,
    chat: ChatRequest,
    labels: Mapping[str, str],
    holder: Holder,
    request_id: str,
    receive: Receive,
    teller: Teller,
) -> Response:
    """Computes a chat's one answer, and tells it.

    Raises:
        ApiError: it cannot be computed.
        ClientGone: nobody waits any more.
    """
    engine = gateway.engine
    asks = await asyncio.to_thread(asks_of, chat, labels, request_id, engine.takes)
    explain = chat.scope is not None and chat.scope.explain
    job = gateway.job(engine.answer, asks, labels, holder)

    def scope(told: Told) -> Mapping[str, Any]:
        return scope_data([told], [request_id], explain)

    if not chat.stream:
        told = Told()
        try:
            await unless_gone(receive, _collect(job, told))
        finally:
            await job.close()
        body = teller.whole(_blocks(told), told, scope(told))
        return JsonResponse(body, headers=headers_of(told.began, told.done))
    items = job.items()
    try:
        first = await unless_gone(receive, items.__anext__())
    except BaseException:
        await job.close()
        raise
    began = first.item if isinstance(first.item, Began) else None
    return EventStream(_events(teller, first, items, scope), job, headers_of(began))


async def _collect(job: Job[Item], told: Told) -> None:
    async for of in job.items():
        tell(told, of)


def _blocks(told: Told) -> list[Block]:
    """A whole answer's."""
    row = _Row(None)
    row.put("thought", told.extra.get("reasoning_content"))
    row.put("text", told.text)
    row.call(told.extra.get("tool_calls", ()))
    return row.blocks


class _Row:
    """Blocks as they come, the last of which may go on.

    Args:
        teller: makes events of it; None: none are wanted.
    """

    def __init__(self, teller: Teller | None) -> None:
        self.blocks: list[Block] = []
        self._teller = teller
        self._call = -1  # number of the call that may go on
        self._open = False

    def put(self, kind: Literal["thought", "text"], text: str | None) -> list[Event]:
        if not text:
            return []
        if self._open and self.blocks[-1].kind == kind:
            return self._more(text)
        return [*self._next(Block(kind, len(self.blocks))), *self._more(text)]

    def call(self, calls: Iterable[Mapping[str, Any]]) -> list[Event]:
        """Calls, or pieces of them, as a chat's ``tool_calls``."""
        out: list[Event] = []
        for number, call in enumerate(calls):
            function = call.get("function") or {}
            at = call.get("index", number)
            if at != self._call:
                block = Block("call", len(self.blocks), "", call.get("id") or "")
                block.name = function.get("name") or ""
                out += self._next(block)
                self._call = at
            if function.get("arguments"):
                out += self._more(function["arguments"])
        return out

    def _next(self, block: Block) -> list[Event]:
        closed = self.close()
        self.blocks.append(block)
        self._open = True
        return [*closed, *(self._teller.opened(block) if self._teller else ())]

    def _more(self, text: str) -> list[Event]:
        block = self.blocks[-1]
        block.text += text
        return list(self._teller.more(block, text)) if self._teller else []

    def close(self) -> list[Event]:
        was, self._open, self._call = self._open, False, -1
        return list(self._teller.closed(self.blocks[-1])) if was and self._teller else []


async def _events(
    teller: Teller, first: Of[Item], rest: AsyncGenerator[Of[Item], None], scope: ScopeOf
) -> AsyncIterator[bytes]:
    told, row = Told(), _Row(teller)
    try:
        for made in _of(teller, row, told, first, scope):
            yield _sent(made)
        async for of in rest:
            for made in _of(teller, row, told, of, scope):
                yield _sent(made)
    except ApiError as error:
        # The head is long sent.
        yield _sent({**teller.failed(error), "type": "error"})


def _of(teller: Teller, row: _Row, told: Told, of: Of[Item], scope: ScopeOf) -> Iterable[Event]:
    item = of.item
    tell(told, of)
    if isinstance(item, Began):
        return teller.begin()
    if isinstance(item, Piece):
        return row.put("text", str(item))
    if isinstance(item, Extra):
        thought = row.put("thought", item.fields.get("reasoning_content"))
        return [*thought, *row.call(item.fields.get("tool_calls") or ())]
    return [*row.close(), *teller.end(row.blocks, told, scope(told))]


def _sent(made: Event) -> bytes:
    name: str = made["type"]
    return b"event: " + name.encode() + b"\ndata: " + json_bytes(made) + b"\n\n"
