"""A request while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.jobs import MAX_UNREAD, Job
from scope_runtime.serve.queue import FairQueue


class Engine:
    """Has an answer without end; ``n`` items of it so far."""

    def __init__(self) -> None:
        self.n = 0
        self.closed = False

    async def answer(self, ask: None) -> AsyncGenerator[int, None]:
        try:
            while True:
                self.n += 1
                yield self.n
        finally:
            self.closed = True


def job(engine: Engine) -> Job[int]:
    tickets = FairQueue(1, 0, 0, lambda: 0.0).enter("tenant")
    return Job(engine.answer, [None], tickets, 3600.0, lambda error: None, lambda job: None)


async def settled(engine: Engine) -> int:
    """Items that the engine has given when it gives no more."""
    n = -1
    while n != engine.n:
        n = engine.n
        await asyncio.sleep(0)
    return n


def test_a_client_that_does_not_read_keeps_the_engine_waiting() -> None:
    async def test() -> None:
        engine = Engine()
        running = job(engine)
        await asyncio.sleep(0)
        assert await settled(engine) == MAX_UNREAD + 1
        items = running.items()
        read = [(await items.__anext__()).item for _ in range(10)]
        assert read == list(range(1, 11))
        assert await settled(engine) == MAX_UNREAD + 11
        await running.close()
        assert engine.closed

    asyncio.run(test())


def test_an_end_reaches_a_request_whose_client_does_not_read() -> None:
    async def test() -> None:
        engine = Engine()
        running: Job[Any] = job(engine)
        await asyncio.sleep(0)
        await settled(engine)
        running.end(ApiError(504, "The request took too long."))
        with pytest.raises(ApiError, match="too long"):
            async for _ in running.items():
                pass
        await running.close()
        assert engine.closed

    asyncio.run(test())
