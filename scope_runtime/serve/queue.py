"""Who is next: tenants in turn, each in the order of its requests; and who cannot wait any more."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType

from scope_runtime.serve.errors import ApiError

_WEIGHT = 0.2  # of the newest in the mean
_MAX_RETRY_S = 60


class FairQueue:
    """Hands out a number of places. Belongs to one event loop.

    Args:
        slots: places; whoever holds one is computed.
        limit: most that may wait, of all tenants and of one.
        clock: seconds, for the guess of how long waiting takes.
    """

    def __init__(
        self, slots: int, limit: int, tenant_limit: int, clock: Callable[[], float]
    ) -> None:
        self.slots = slots
        self._free = slots
        self._limit = limit
        self._tenant_limit = tenant_limit
        self._clock = clock
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._mean_s = 1.0

    @property
    def n_waiting(self) -> int:
        # A list of them first: who scrapes the metrics asks from another thread.
        return sum(map(len, list(self._waiting.values())))

    @property
    def n_running(self) -> int:
        return self.slots - self._free

    def enter(self, tenant: str, n: int = 1) -> list[Ticket]:
        """Tickets for ``n`` answers of one request: all of them, or none.

        Raises:
            ApiError: 429, with the time after which to try again.
        """
        more = n - self._free
        mine = len(self._waiting.get(tenant, ()))
        if more > 0 and (self.n_waiting + more > self._limit or mine + more > self._tenant_limit):
            raise ApiError(
                429,
                "Too many requests are waiting already.",
                code="queue_full",
                retry_after_s=self._retry_s(),
            )
        tickets = [Ticket(self, tenant) for _ in range(n)]
        self._waiting.setdefault(tenant, deque()).extend(tickets)
        self._hand_out()
        return tickets

    def _retry_s(self) -> int:
        guess = self._mean_s * (self.n_waiting + 1) / self.slots
        return max(1, min(_MAX_RETRY_S, math.ceil(guess)))

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            tenant, line = next(iter(self._waiting.items()))
            ticket = line.popleft()
            # To the end, whoever has been served.
            self._waiting.move_to_end(tenant)
            if not line:
                del self._waiting[tenant]
            self._free -= 1
            ticket.began_s = self._clock()
            ticket.granted.set()

    def leave(self, ticket: Ticket) -> None:
        """Gives a place back, or stops waiting for one."""
        if ticket.granted.is_set():
            took_s = self._clock() - ticket.began_s
            self._mean_s += _WEIGHT * (took_s - self._mean_s)
            self._free += 1
            self._hand_out()
            return
        line = self._waiting[ticket.tenant]
        line.remove(ticket)
        if not line:
            del self._waiting[ticket.tenant]


class Ticket:
    """A place in the queue; as a context, entered when it is its turn. Leaving it twice does nothing."""

    def __init__(self, queue: FairQueue, tenant: str) -> None:
        self.tenant = tenant
        self.granted = asyncio.Event()
        self.began_s = 0.0
        self._queue: FairQueue | None = queue

    def leave(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.leave(self)

    async def __aenter__(self) -> None:
        try:
            await self.granted.wait()
        except BaseException:
            self.leave()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
