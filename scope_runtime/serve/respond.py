"""From a job to the client: everything at once, or as it comes; and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from scope_runtime.llama.answer import Piece
from scope_runtime.serve.ask import Ask, Began, Done, Extra, Item
from scope_runtime.serve.errors import ApiError, JsonResponse, json_bytes
from scope_runtime.serve.jobs import Job, Of
from scope_runtime.serve.shapes import Shape, Told, finish_of, scope_data, usage

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a request wants its answers told.

    Attributes:
        n: answers to each prompt.
        explain: the report of each rule as well.
        include_usage: a last chunk with the tokens.
        scored: log probabilities.
    """

    shape: Shape
    model: str
    created: int
    request_id: str
    asks: Sequence[Ask]
    n: int
    explain: bool
    include_usage: bool
    scored: bool

    def head(self, name: str) -> dict[str, Any]:
        return {
            "id": f"{self.shape.prefix}{self.request_id}",
            "object": name,
            "created": self.created,
            "model": self.model,
        }

    def scope(self, told: Sequence[Told]) -> dict[str, Any]:
        return scope_data(told, [ask.request_id for ask in self.asks], self.explain)


def headers_of(began: Began | None, done: Done | None = None) -> dict[str, str]:
    """What the response's head says of the policies; of an answer that is over, by what it was computed under."""
    if began is None:
        return {}
    spans = done.revisions if done is not None else ()
    return {
        "x-scope-revision": spans[0].revision if spans else began.revision,
        "x-scope-interventions": str(began.interventions),
    }


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Waits for work, or until the client disconnects. The request's body must have been read.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


async def whole(job: Job[Item], wanted: Wanted, receive: Receive) -> Response:
    """All answers in one body.

    Raises:
        ApiError: one of them failed.
        ClientGone: nobody waits any more.
    """
    told = [Told() for _ in wanted.asks]

    async def collect() -> None:
        async for of in job.items():
            tell(told[of.index], of)

    try:
        await unless_gone(receive, collect())
    finally:
        await job.close()
    shape = wanted.shape
    first = told[0]
    return JsonResponse(
        {
            **wanted.head(shape.whole_name),
            "choices": [shape.whole(i, one, wanted.scored) for i, one in enumerate(told)],
            "usage": usage(told, wanted.n),
            "scope": wanted.scope(told),
        },
        headers=headers_of(first.began, first.done),
    )


def tell(told: Told, of: Of[Item]) -> None:
    """Adds what came of an answer to what was told of it."""
    item = of.item
    if isinstance(item, Began):
        told.began = item
    elif isinstance(item, Done):
        told.done = item
    elif isinstance(item, Extra):
        told.add(item.fields)
    else:
        told.text += item
        told.score(item.scores)


async def stream(job: Job[Item], wanted: Wanted, receive: Receive) -> Response:
    """The answers as they come. Returns when the first prompt is computed: what fails before has its own status.

    Raises:
        ApiError: it failed.
        ClientGone: nobody waits any more.
    """
    items = job.items()
    try:
        first = await unless_gone(receive, items.__anext__())
    except BaseException:
        await job.close()
        raise
    began = first.item
    return EventStream(
        _chunks(first, items, wanted),
        job,
        headers_of(began) if isinstance(began, Began) else {},
    )


async def _chunks(
    first: Of[Item], rest: AsyncGenerator[Of[Item], None], wanted: Wanted
) -> AsyncIterator[bytes]:
    shape = wanted.shape
    told = [Told() for _ in wanted.asks]
    head = wanted.head(shape.chunk_name)
    usages = {"usage": None} if wanted.include_usage else {}
    left = len(told)

    def chunk(choice: dict[str, Any], **more: object) -> bytes:
        return event({**head, "choices": [choice], **usages, **more})

    try:
        async for of in _after(first, rest):
            one, index, item = told[of.index], of.index, of.item
            if isinstance(item, Began):
                opening = shape.opening(index)
                if opening is not None:
                    yield chunk(opening)
            elif isinstance(item, Piece):
                yield chunk(shape.piece(index, one, str(item), item.scores, wanted.scored))
            elif isinstance(item, Extra):
                yield chunk(shape.extra(index, item.fields))
            tell(one, of)
            if isinstance(item, Done):
                left -= 1
                last = not left and not wanted.include_usage
                more = {"scope": wanted.scope(told)} if last else {}
                yield chunk(shape.end(index, finish_of(item)), **more)
        if wanted.include_usage:
            total = {"usage": usage(told, wanted.n), "scope": wanted.scope(told)}
            yield event({**head, "choices": [], **total})
        yield DONE
    except ApiError as error:
        # The head is long sent: the error is the last event, and no [DONE] follows.
        yield event(error.body)


async def _after(first: Of[Item], rest: AsyncGenerator[Of[Item], None]) -> AsyncIterator[Of[Item]]:
    yield first
    async for of in rest:
        yield of


def event(data: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json_bytes(data) + b"\n\n"


class EventStream(Response):
    """Server-sent events; when the client goes away, or when they end, the job is closed."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], job: Job[Item], headers: dict[str, str]
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        del self.headers["content-length"]
        self._events = events
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone, OSError):
                await unless_gone(receive, self._send(send))
        finally:
            await self._job.close()

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
