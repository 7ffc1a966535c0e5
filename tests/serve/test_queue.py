"""Turns: fair between tenants, bounded for each, all or nothing for a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.queue import FairQueue, Ticket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(test())


def queue(
    slots: int = 1, limit: int = 100, tenant_limit: int = 100, clock: Clock | None = None
) -> FairQueue:
    return FairQueue(slots, limit, tenant_limit, clock or Clock())


def served(tickets: list[Ticket], busy: Ticket) -> list[str]:
    """Tenants in the order in which they get the one place."""
    order = []
    waiting = list(tickets)
    while busy is not None:
        busy.leave()
        busy = next((ticket for ticket in waiting if ticket.granted.is_set()), None)
        if busy is not None:
            waiting.remove(busy)
            order.append(busy.tenant)
    return order


def test_a_tenant_with_many_requests_does_not_keep_others_waiting() -> None:
    async def test() -> None:
        line = queue()
        (busy,) = line.enter("a")
        tickets = [*line.enter("a", 4), *line.enter("b", 2), *line.enter("c")]
        assert line.n_waiting == 7
        assert served(tickets, busy) == ["a", "b", "c", "a", "b", "a", "a"]
        assert (line.n_waiting, line.n_running) == (0, 0)

    run(test)


def test_one_tenant_is_served_in_order() -> None:
    async def test() -> None:
        line = queue()
        (busy,) = line.enter("a")
        first, second = line.enter("a", 2)
        busy.leave()
        assert (first.granted.is_set(), second.granted.is_set()) == (True, False)

    run(test)


@pytest.mark.parametrize(("limit", "tenant_limit"), [(2, 100), (100, 2)])
def test_who_cannot_wait_is_told_when_to_come_again(limit: int, tenant_limit: int) -> None:
    async def test() -> None:
        clock = Clock()
        line = queue(2, limit, tenant_limit, clock)
        running = line.enter("a", 2)
        line.enter("a", 2)
        with pytest.raises(ApiError) as caught:
            line.enter("a")
        assert caught.value.status == 429
        assert caught.value.headers == {"retry-after": "2"}  # 3 waiting of 1 s each, two at a time
        if tenant_limit == 2:
            line.enter("b")
        clock.now = 31.0
        running[0].leave()
        with pytest.raises(ApiError) as caught:
            line.enter("a", 5)
        assert int(caught.value.headers["retry-after"]) > 2

    run(test)


def test_a_request_gets_all_its_places_or_none() -> None:
    async def test() -> None:
        line = queue(2, 2, 2)
        with pytest.raises(ApiError):
            line.enter("a", 5)
        assert (line.n_waiting, line.n_running) == (0, 0)
        assert len(line.enter("a", 4)) == 4
        assert (line.n_waiting, line.n_running) == (2, 2)

    run(test)


def test_whoever_stops_waiting_leaves_no_gap() -> None:
    async def test() -> None:
        line = queue()
        (busy,) = line.enter("a")
        (impatient,) = line.enter("b")
        (patient,) = line.enter("c")

        async def wait() -> None:
            async with impatient:
                raise AssertionError("it was never its turn")

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        impatient.leave()
        busy.leave()
        busy.leave()
        assert patient.granted.is_set()
        assert line.n_running == 1

    run(test)
