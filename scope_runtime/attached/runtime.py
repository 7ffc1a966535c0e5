"""A llama-server that obeys policies: the process, its hook, its requests, and everything on record."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.interface import AttachedStatus, SlotState
from scope_runtime.attached.programs import SlotPrograms
from scope_runtime.attached.server import Attached, ServerFolder
from scope_runtime.attached.upstream import EngineGone
from scope_runtime.attached.vocabulary import control_texts
from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.errors import HookError, ScopeError, UsageError
from scope_runtime.events import Event, EventReader, Kind, RequestContext, RevisionSpan, Sink
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.metrics.collect import attached_reader
from scope_runtime.native.hook import RawEvent
from scope_runtime.policy.model import Apply, Mode
from scope_runtime.program import Program
from scope_runtime.records import Records
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape

if TYPE_CHECKING:
    from scope_runtime.lifecycle import BundleOptions, Hosted, Options

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the server is started again, from the first failure in a row to all after the last."""

STEADY_S = 60.0
"""A server that lived for so long had no failure in a row."""

_DRAIN_S = 0.1
_SUMMARY = 3


class Link:
    """One server process with what is known of it; a restart makes another.

    Attributes:
        waiting: summaries of requests that have not ended yet, by the request's number.
    """

    def __init__(self, server: Attached, source: ProgramSource, model_digest: str) -> None:
        self.server = server
        self.hook = server.hook
        self.upstream = server.upstream
        self.n_slots = server.upstream.n_slots
        self.programs = SlotPrograms(server.hook, self.n_slots, source)
        self.reader = EventReader(self.programs.programs, model_digest)
        self.running: dict[int, Running] = {}
        self.waiting: dict[int, list[RawEvent]] = {}
        self.n_unmatched = server.hook.status.n_unmatched
        self.draining = threading.Lock()


@dataclass
class Request:
    """A request on a slot.

    Attributes:
        begun: the slot before it.
        reusable: all that the slot holds was computed under this program, and may be taken for this prompt.
    """

    link: Link
    slot: int
    running: Running
    program: Program
    begun: SlotState
    reusable: bool
    timing: Timing
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)

    @property
    def state(self) -> SlotState:
        """The slot now; a read of shared memory."""
        return self.link.hook.slot(self.slot)

    @property
    def revisions(self) -> tuple[RevisionSpan, ...]:
        """Under which the first position is computed."""
        return (RevisionSpan(self.program.revision, 0),)


@dataclass(frozen=True, slots=True)
class Ended:
    """What was done to an answer.

    Attributes:
        unsteered: why it must not go out as steered; None: it was, as its policies say.
    """

    revisions: tuple[RevisionSpan, ...]
    report: tuple[Event, ...]
    unsteered: str | None


class AttachedRuntime:
    """A llama-server under policies. It is started, watched and started again; see docs/serving.md.

    Args:
        command: the server.
        folder: where it lives; see ``attached.server``.
        say: told the server's log, line by line, and what becomes of the server.
        policy, policy_root, watch, state, control, audit, metrics, sinks: as of ``Runtime``.

    Raises:
        ScopeError: model or policies are not sound, or the server cannot be steered.
    """

    def __init__(
        self,
        command: ServerCommand,
        policy: str | Path | BundleOptions,
        *,
        folder: Path,
        say: Callable[[str], None],
        policy_root: str | Path | None = None,
        watch: Options | None = None,
        state: str | Path | None = None,
        control: str | Path | None = None,
        audit: str | Path | AuditOptions | None = None,
        metrics: CollectorRegistry | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        from scope_runtime.lifecycle import Hosted, Options, Source
        from scope_runtime.lifecycle.build import Bench

        info = check_model(command.model)
        self.shape = ModelShape(info.architecture, info.n_layer, info.n_embd)
        self.model_digest = f"sha256:{model_digest(info)}"
        self._model = command.model
        self._say = say
        self._numbers = itertools.count(1)
        self._source = ProgramSource(None, self.shape)
        self._link: Link | None = None
        self._lost_link: Link | None = None  # the latest; somebody may still read it
        self._changing = threading.RLock()  # of link and source
        self._closing = threading.Event()
        self._trouble: str | None = "the server is starting"
        self._opened: Hosted | None = None
        self._threads: list[threading.Thread] = []
        options = watch or Options()
        self._fails_closed = options.fail == "closed"
        self._folder = ServerFolder(folder, command, lambda line: say(f"llama-server: {line}"))
        try:
            self._records = Records(audit, metrics, sinks)
        except BaseException:
            self._folder.close()
            raise
        self._records.model_digest = self.model_digest
        try:
            self.record("start", Kind.RUNTIME, model=str(command.model), engine="llama-server")
            self._link = self._first()
            self.n_slots = self._link.n_slots
            self._trouble = None
            self._records.metrics.read(attached_reader(self))
            root = Path(policy_root) if policy_root else None
            self._opened = Hosted(
                self,
                Source(Path(policy), root) if isinstance(policy, (str, Path)) else policy,
                Bench(self.shape),
                options,
                self._records.metrics,
                state=Path(state) if state is not None else None,
                control=Path(control) if control is not None else None,
            )
            self._spawn(self._watch, "scope-supervise")
            self._spawn(self._drain, "scope-events")
        except BaseException:
            self.close()
            raise

    def _spawn(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- a Target of policies, and a sink

    @property
    def hosted(self) -> Hosted:
        """What follows the policies."""
        if self._opened is None:
            raise UsageError("the runtime is not open")
        return self._opened

    @property
    def acknowledged(self) -> bool:
        link = self._link
        return link is not None and link.programs.acknowledged

    @property
    def audit(self) -> AuditLog | None:
        return self._records.audit

    def write(self, events: Sequence[Event]) -> None:
        """Hands events to every sink."""
        self._records.write(events)

    def record(self, what: str, kind: Kind, **detail: object) -> None:
        """Puts an event that concerns no request on record."""
        self._records.record(what, kind, **detail)

    def events(self) -> tuple[Event, ...]:
        return self._records.events()

    @property
    def source(self) -> ProgramSource:
        """What requests get their programs from."""
        return self._source

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None:
        """Swaps in policies; see ``Runtime.take_up``. While there is no server they wait for the next one."""
        with self._changing:
            previous, link = self._source.revision, self._link
            swap_ms = hook_swap_ms = 0.0
            if link is not None and link.hook.alive:
                now = now or source.apply is Apply.NEXT_TOKEN
                swap_ms = link.programs.use(source, now=now)
                hook_swap_ms = link.hook.status.swap_ns / 1e6
            self._source = source
        self._records.taken_up(
            source, previous, what=what, swap_ms=swap_ms, hook_swap_ms=hook_swap_ms, **detail
        )

    # -- the server

    @property
    def trouble(self) -> str | None:
        """Why no request can be answered; None when they can."""
        return self._trouble

    @property
    def status(self) -> AttachedStatus | None:
        """Of the hook; None while there is no server."""
        link = self._link
        return link.hook.status if link is not None else None

    @property
    def n_running(self) -> int:
        link = self._link
        return len(link.running) if link is not None else 0

    def _first(self) -> Link:
        server, why = self._folder.adopt()
        if why is not None:
            self._say(f"the llama-server that was there is ended: {why}")
        if server is None:
            server = self._folder.start(self.shape)
        return self._linked(server)

    def _linked(self, server: Attached) -> Link:
        try:
            link = Link(server, self._source, self.model_digest)
        except BaseException:
            self._folder.end(server)
            raise
        status = server.hook.status
        what = "adopted" if server.adopted else "started"
        self._say(f"llama-server {what}: process {status.pid}, {link.n_slots} slots")
        self.record(f"server-{what}", Kind.RUNTIME, pid=status.pid, attach=list(status.words))
        return link

    def _watch(self) -> None:
        """Starts the server again whenever it has ended."""
        failures = 0
        began = time.monotonic()
        while not self._closing.is_set():
            link = self._link
            if link is not None:
                if not link.server.process.ended(0.2):
                    continue
                self._lost(link)
                if time.monotonic() - began > STEADY_S:
                    failures = 0
            if self._closing.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]):
                return
            failures += 1
            began = time.monotonic()
            try:
                with contextlib.ExitStack() as undo:
                    server = self._folder.start(self.shape)
                    undo.callback(self._folder.end, server)
                    with self._changing:
                        self._link = self._linked(server)
                        self._trouble = None
                    undo.pop_all()
            except Exception as error:
                self._trouble = f"the server does not start: {error}"
                self._say(self._trouble)
                fields = error.fields() if isinstance(error, ScopeError) else {"error": str(error)}
                self.record("server-failed", Kind.RUNTIME, **fields)

    def _lost(self, link: Link) -> None:
        how = link.server.process.how
        self._say(f"llama-server is gone: {how}")
        with self._changing:
            self._trouble = "the server is starting again"
            self._link = None
        with contextlib.suppress(ScopeError):
            self._collect(link)
        self.record("server-lost", Kind.RUNTIME, how=how, n_running=len(link.running))
        before, self._lost_link = self._lost_link, link
        if before is not None and not before.running:
            before.server.close()

    def close(self) -> None:
        """Ends the server, then closes the logs. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._opened is not None:
            self._opened.close()
        self._records.metrics.close()
        # A start that is under way ends by itself.
        self._folder.close_starts()
        for thread in self._threads:
            thread.join()
        if self._lost_link is not None:
            self._lost_link.server.close()
        if self._link is not None:
            with contextlib.suppress(ScopeError):
                self._collect(self._link)
            self._folder.end(self._link.server)
        self._folder.close()
        self._records.close()

    # -- requests

    def begin(
        self,
        slot: int,
        labels: Mapping[str, str],
        request_id: str,
        sampling: Sampling,
        timing: Timing,
    ) -> Request:
        """Takes a free slot for a request that is to be sent to it. Blocks for at most an ubatch.

        Raises:
            EngineGone: there is no server at the moment.
            AuditError: it could not be put on record.
        """
        self._records.admit()
        link = self._link
        if link is None:
            raise EngineGone("llama-server is not there")
        number = next(self._numbers)
        identity = RequestContext(dict(labels), request_id)
        timing.begin()
        try:
            program, share, begun = link.programs.begin(slot, number, identity)
        except HookError:
            if link.hook.alive:
                raise
            raise EngineGone("llama-server is gone") from None
        reusable = not program.phase_dependent and link.programs.computed_as(program, begun.spans)
        running = Running(number, identity, 0, share, timing)
        link.running[number] = running
        return Request(link, slot, running, program, begun, reusable, timing, sampling)

    def end(
        self,
        request: Request,
        finish: str,
        *,
        n_prompt: int,
        n_reused: int,
        n_answer: int,
        prompt: str,
        answer: str,
    ) -> Ended:
        """Puts a request on record, when the server no longer works on its slot. Blocks for at most an ubatch."""
        link, running, slot = request.link, request.running, request.slot
        try:
            last = link.hook.end(slot)
        except HookError:
            if link.hook.alive:
                raise
            last = link.hook.slot(slot)  # what it knew in the end
        spans = link.reader.revisions(last.spans) if last.spans is not None else ()
        self._collect(link)
        report = [
            event
            for raw in link.waiting.pop(running.number, [])
            if (event := link.reader.event(raw, running.request, spans)) is not None
        ]
        link.running.pop(running.number, None)
        program = link.programs.program_of(slot)
        unsteered = self._unsteered(request, last, program)
        running.n_prompt = n_prompt
        running.events += report
        summary = running.summary(
            spans,
            finish,
            sequence=slot,
            program=program,
            sampling=request.sampling,
            n_answer=n_answer,
            n_reused=n_reused,
            n_dropped=link.hook.status.n_dropped,
            digests={
                **link.reader.digests(program),
                **({"n_unsteered": last.n_unsteered} if last.n_unsteered else {}),
                **({"unsteered": unsteered} if unsteered else {}),
            },
            contents=running.contents((), lambda _: prompt, request.tokens, answer),
        )
        running.events.append(summary)
        link.programs.end(slot)
        self.write([*report, summary])
        return Ended(spans, tuple(running.events), unsteered)

    def _unsteered(self, request: Request, last: SlotState, program: Program) -> str | None:
        """Whether something was computed otherwise than the policies say, and what."""
        link = request.link
        told = None
        if last.n_unsteered:
            told = f"{last.n_unsteered} tokens were not steered"
        if last.n_stray != request.begun.n_stray:
            told = f"{last.n_stray - request.begun.n_stray} tokens were computed for nobody"
        unmatched = link.hook.status.n_unmatched
        if unmatched != link.n_unmatched:
            told = f"{unmatched - link.n_unmatched} hook points were missed"
        if told is None:
            return None
        if program.hooks:
            self.record(
                "unsteered",
                Kind.RUNTIME,
                request_id=request.running.request.request_id,
                reason=told,
            )
        return told

    def must_steer(self, request: Request) -> bool:
        """Whether no answer may go out that is not steered: its policies enforce, and ``fail`` is ``closed``."""
        return self._fails_closed and any(
            rule.mode is Mode.ENFORCE for rule in request.program.rules
        )

    def control_texts(self) -> list[str]:
        """Texts that a message must not have where a stranger wrote it: they count as control tokens."""
        return control_texts(self._model)

    # -- events

    def _drain(self) -> None:
        """Takes events out of the ring while requests run, so that alerts are told when they fire."""
        while not self._closing.wait(_DRAIN_S):
            link = self._link
            if link is not None:
                with contextlib.suppress(HookError):
                    self._collect(link)

    def _collect(self, link: Link) -> None:
        with link.draining:
            events = []
            for raw in link.hook.drain():
                running = link.running.get(raw.request_id)
                if running is None:
                    continue
                if raw.kind == _SUMMARY:
                    # It bears the request's spans, which are known at its end.
                    link.waiting.setdefault(running.number, []).append(raw)
                    continue
                event = link.reader.event(raw, running.request, ())
                if event is not None:
                    running.events.append(event)
                    events.append(event)
            if events:
                self.write(events)
