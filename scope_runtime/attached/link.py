"""One server process with what is known of it, and the requests on its slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from scope_runtime.attached.interface import SlotState
from scope_runtime.attached.programs import SlotPrograms
from scope_runtime.attached.server import Attached
from scope_runtime.attached.upstream import EngineGone
from scope_runtime.errors import HookError
from scope_runtime.events import Event, EventReader, RequestContext, RevisionSpan
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.native.abi import RawEvent
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource

_SUMMARY = 3


class Link:
    """One server process; a restart makes another.

    Attributes:
        running: requests by their number.
    """

    def __init__(self, server: Attached, source: ProgramSource, model_digest: str) -> None:
        self.server = server
        self.hook = server.hook
        self.upstream = server.upstream
        self.n_slots = server.upstream.n_slots
        self.programs = SlotPrograms(server.hook, self.n_slots, source)
        self.reader = EventReader(self.programs.programs, model_digest)
        self.running: dict[int, Running] = {}
        # Summaries of requests that have not ended yet, by the request's number.
        self._waiting: dict[int, list[RawEvent]] = {}
        self._draining = threading.Lock()

    def begin(
        self, slot: int, number: int, identity: RequestContext, sampling: Sampling, timing: Timing
    ) -> Request:
        """Puts a free slot under its request's program, before the request is sent.

        Raises:
            HookError: the server is gone, or its hook refuses.
        """
        n_unmatched = self.hook.status.n_unmatched
        program, share, begun = self.programs.begin(slot, number, identity)
        reusable = not program.phase_dependent and self.programs.computed_as(program, begun.spans)
        running = Running(number, identity, 0, share, timing)
        self.running[number] = running
        return Request(self, slot, running, program, begun, reusable, timing, sampling, n_unmatched)

    def end(self, request: Request) -> tuple[SlotState, bool]:
        """The slot's last state, once the server no longer works on it; and whether its hook has summed it up."""
        try:
            return self.hook.end(request.slot), True
        except HookError:
            if self.hook.alive:
                self.programs.unsure(request.slot)
        try:
            return self.hook.slot(request.slot), False
        except HookError:
            return request.begun, False  # it was killed while it wrote

    def forget(self, request: Request) -> None:
        """The request is on record."""
        self.running.pop(request.running.number, None)
        self.programs.end(request.slot)

    # -- events

    def collect(self, write: Callable[[Sequence[Event]], None]) -> None:
        """Takes events out of the ring; what a request's end must go with waits for it."""
        with self._draining:
            events = []
            for raw in self.hook.drain():
                running = self.running.get(raw.request_id)
                if running is None:
                    continue
                if raw.kind == _SUMMARY:
                    # It bears the request's spans, which are known at its end.
                    self._waiting.setdefault(running.number, []).append(raw)
                    continue
                event = self.reader.event(raw, running.request, ())
                if event is not None:
                    running.events.append(event)
                    events.append(event)
            if events:
                write(events)

    def report(self, request: Request, spans: tuple[RevisionSpan, ...]) -> list[Event]:
        """A request's summaries, which have been collected."""
        running = request.running
        return [
            event
            for raw in self._waiting.pop(running.number, [])
            if (event := self.reader.event(raw, running.request, spans)) is not None
        ]

    def unsteered(self, request: Request, last: SlotState, summed_up: bool) -> str | None:
        """What of a request was computed otherwise than its policies say, or cannot be shown; None: nothing."""
        if not summed_up:
            who = (
                "its hook did not tell"
                if self.hook.alive
                else "llama-server was gone before it told"
            )
            return f"{who} what was done"
        if last.spans is None:
            return "its policies changed more often than can be told"
        stray = last.n_stray - request.begun.n_stray
        missed = self.hook.status.n_unmatched - request.n_unmatched
        if missed:
            return f"{missed} hook points were missed"
        if stray:
            return f"{stray} tokens were computed for nobody"
        if last.n_unsteered:
            return f"{last.n_unsteered} tokens were not steered"
        return None


@dataclass
class Request:
    """A request on a slot.

    Attributes:
        begun: the slot before it.
        reusable: all that the slot holds was computed under this program, and may be taken for this prompt.
        n_unmatched: hook points that the server's hook had missed before it.
        tokens: of its answer, as far as the server tells them.
    """

    link: Link
    slot: int
    running: Running
    program: Program
    begun: SlotState
    reusable: bool
    timing: Timing
    sampling: Sampling
    n_unmatched: int
    tokens: list[int] = field(default_factory=list)

    @property
    def state(self) -> SlotState:
        """The slot now; a read of shared memory. Raises EngineGone where the server was killed while it wrote."""
        with self._gone_told():
            return self.link.hook.slot(self.slot)

    def first(self, n_reused: int) -> Program:
        """What its first position was computed under, of which so many had been computed before."""
        if n_reused:
            return self.program
        with self._gone_told():
            return self.link.programs.first_of(self.slot)

    @contextmanager
    def _gone_told(self) -> Iterator[None]:
        try:
            yield
        except HookError:
            if self.link.hook.alive:
                raise
            raise EngineGone("llama-server is gone") from None


@dataclass(frozen=True, slots=True)
class Ended:
    """What was done to an answer.

    Attributes:
        unsteered: why it must not go out as steered; None: it was, as its policies say.
    """

    revisions: tuple[RevisionSpan, ...]
    report: tuple[Event, ...]
    unsteered: str | None
