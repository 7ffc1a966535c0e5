"""A request while it is answered: its answers side by side, one deadline, one end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scope_runtime.errors import ScopeError
from scope_runtime.serve.errors import ApiError, internal, refused
from scope_runtime.serve.queue import Ticket

MAX_UNREAD = 1024
"""Items of a request that nobody has taken yet. More than most answers have: those free their place in any case."""

A = TypeVar("A")
I = TypeVar("I")  # noqa: E741


@dataclass(frozen=True, slots=True)
class Of(Generic[I]):
    """Something of the answer with this index."""

    index: int
    item: I


class _End:
    """Nothing more comes of an answer, and its place is free."""


class Job(Generic[I]):
    """Computes the answers of one request; ``items`` gives what they bring, in the order in which it comes.

    Args:
        answer: what the engine does for one of the asks.
        tickets: one for each ask.
        deadline_s: from now on; then everything ends with 504.
        fault: told what nobody expected; the client gets to know only that there was something.
        ended: told when the job is closed.
    """

    def __init__(
        self,
        answer: Callable[[A], AsyncGenerator[I, None]],
        asks: Sequence[A],
        tickets: Sequence[Ticket],
        deadline_s: float,
        fault: Callable[[BaseException], None],
        ended: Callable[[Job[Any]], None],
    ) -> None:
        self._came: asyncio.Queue[Of[I] | _End | ApiError] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_UNREAD)
        self._left = len(asks)
        self._ended: ApiError | None = None
        self._fault = fault
        self._told_end = ended
        self._tickets = tickets
        self._tasks = [
            asyncio.ensure_future(self._answer(answer(ask), index, ticket))
            for index, (ask, ticket) in enumerate(zip(asks, tickets, strict=True))
        ]
        self._timer = asyncio.get_running_loop().call_later(
            deadline_s, self.end, ApiError(504, "The request took too long.", code="deadline")
        )

    async def _answer(self, answer: AsyncGenerator[I, None], index: int, ticket: Ticket) -> None:
        try:
            async with ticket, contextlib.aclosing(answer) as items:
                async for item in items:
                    # A client that does not read keeps the engine waiting, not the answer in memory.
                    await self._room.acquire()
                    self._came.put_nowait(Of(index, item))
            self._came.put_nowait(_End())
        except ScopeError as error:
            told = refused(error)
            if told.status >= 500:
                self._fault(error)
            self._came.put_nowait(told)
        except Exception as error:
            self._fault(error)
            self._came.put_nowait(internal())

    def end(self, error: ApiError) -> None:
        """Ends all answers; whoever reads ``items`` gets the error."""
        if self._ended is None:
            self._ended = error
            self._came.put_nowait(error)
            for task in self._tasks:
                task.cancel()

    async def items(self) -> AsyncGenerator[Of[I], None]:
        """Everything that comes, until all answers are done.

        Raises:
            ApiError: one of them failed, or somebody ended the request; the others are ended too.
        """
        while self._left:
            came = await self._came.get()
            if isinstance(came, ApiError):
                raise came
            if isinstance(came, _End):
                self._left -= 1
            else:
                self._room.release()
                yield came

    async def close(self) -> None:
        """Ends what still runs, and waits until its places are free. Safe to call twice."""
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            for ticket in self._tickets:
                # Of a task that was cancelled before it began.
                ticket.leave()
            self._told_end(self)
