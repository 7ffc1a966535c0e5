"""What the routes share: the engine once it is there, keys, queue, running jobs, and the phase of the process."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from scope_runtime.serve.ask import Engine
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.jobs import A, I, Job
from scope_runtime.serve.keys import Holder, KeyRing
from scope_runtime.serve.options import ServeOptions
from scope_runtime.serve.queue import FairQueue
from scope_runtime.told import tell
from scope_runtime.types import StrEnum

ANYBODY = Holder("anonymous", "", {})
"""Whoever asks where no keys are configured."""

LAST_WORD_S = 5.0
"""How long clients may take to read that their request was ended."""

TENANT = "tenant"
"""The label by which the queue is fair; without it, the key's name."""


class Phase(StrEnum):
    """What a process does for those who ask."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Gateway:
    """One process' state. Belongs to one event loop.

    Args:
        stale: why the policies on disk are not those in force; None when they are.
        unrecorded: why no request can be put on record; None when it can.
    """

    def __init__(
        self,
        options: ServeOptions,
        model: str,
        keys: KeyRing,
        stale: Callable[[], str | None] = lambda: None,
        unrecorded: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.options = options
        self.model = model
        self.keys = keys
        self.stale = stale
        self.unrecorded = unrecorded
        self.created = int(time.time())
        self.phase = Phase.LOADING
        self._engine: Engine | None = None
        self._queue = FairQueue(1, 0, 0, time.monotonic)
        self._jobs: set[Job[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @staticmethod
    def now() -> int:
        """Seconds since the epoch, as answers carry them."""
        return int(time.time())

    def serve(self, engine: Engine) -> None:
        """From here on requests are answered."""
        options = self.options
        self._engine = engine
        self._queue = FairQueue(
            engine.slots, options.max_queue, options.max_queue_tenant, time.monotonic
        )
        self.phase = Phase.SERVING

    @property
    def engine(self) -> Engine:
        """Raises ApiError 503 while there is none, or none any more."""
        if self._engine is None or self.phase is not Phase.SERVING:
            raise self._not_serving()
        return self._engine

    def _not_serving(self) -> ApiError:
        doing = "shutting down" if self.phase is Phase.DRAINING else "loading its model"
        return ApiError(503, f"The server is {doing}.", code=str(self.phase), retry_after_s=5)

    def not_ready(self) -> str | None:
        """Why no requests should be sent here; None when they should."""
        if self.phase is not Phase.SERVING:
            return str(self.phase)
        stale = self.stale() if self.options.unready_when_stale else None
        return self.unrecorded() or stale

    @property
    def n_running(self) -> int:
        """Answers that are computed; ``n_waiting`` wait for their turn."""
        return self._queue.n_running

    @property
    def n_waiting(self) -> int:
        return self._queue.n_waiting

    def job(
        self,
        answer: Callable[[A], AsyncGenerator[I, None]],
        asks: Sequence[A],
        labels: Mapping[str, str],
        holder: Holder,
    ) -> Job[I]:
        """Takes a request on: ``answer``, of the engine, will be called with each of the asks.

        Raises:
            ApiError: 429 when too many wait, 503 when none is taken.
        """
        if self.phase is not Phase.SERVING:
            raise self._not_serving()
        tickets = self._queue.enter(labels.get(TENANT, f"key {holder.name}"), len(asks))
        job = Job(answer, asks, tickets, self.options.deadline_s, log_fault, self._ended)
        self._jobs.add(job)
        self._idle.clear()
        return job

    def _ended(self, job: Job[Any]) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()

    # -- the end

    async def drain(self) -> None:
        """Takes no request any more; waits for those that run, then ends what is left after ``drain_s``."""
        self.phase = Phase.DRAINING
        try:
            await asyncio.wait_for(self._idle.wait(), self.options.drain_s)
        except asyncio.TimeoutError:
            await self.end_all()

    async def end_all(self) -> None:
        """Ends every running request at its next token."""
        self.phase = Phase.DRAINING
        for job in list(self._jobs):
            job.end(ApiError(503, "The server is shutting down.", code="draining"))
        # A client that does not read its last event is not waited for.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), LAST_WORD_S)


def log_fault(error: BaseException) -> None:
    """A fault of ours, or of what is under us: whole, on stderr. Requests' texts are not in it."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    tell("".join(lines).rstrip())
