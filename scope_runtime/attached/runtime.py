"""A llama-server that obeys policies: its server, its requests, and everything on record."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.interface import AttachedStatus, SlotState, Steering
from scope_runtime.attached.link import Ended, Link, Request
from scope_runtime.attached.server import Attached
from scope_runtime.attached.shared import Preloaded
from scope_runtime.attached.signs import HANGS_S
from scope_runtime.attached.supervisor import Supervisor, reasons
from scope_runtime.attached.upstream import EngineGone
from scope_runtime.attached.vocabulary import control_texts
from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.errors import HookError, UsageError
from scope_runtime.events import Event, Kind, RequestContext, Sink
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.metrics.collect import attached_reader
from scope_runtime.policy.model import Apply, Mode, Policy
from scope_runtime.program import Program
from scope_runtime.records import Records
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape

if TYPE_CHECKING:
    from scope_runtime.lifecycle import BundleOptions, Hosted, Options
    from scope_runtime.lifecycle.build import Bench
    from scope_runtime.lifecycle.manager import Lifecycle

DRAIN_S = 30.0
_COLLECT_S = 0.1


class AttachedRuntime:
    """A llama-server under policies. It is started, watched and started again; see docs/serving.md.

    Args:
        command: the server.
        folder: where it lives; see ``attached.server``.
        say: told the server's log, line by line, and what becomes of the server.
        leaving: told what is to be called where this process is left without ``close``.
        hangs_s: without any sign of life for so long the server is ended, and started again.
        drain_s: what running answers may take to end, where a change of policies ends the server.
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
        leaving: Callable[[Callable[[], None]], None] = lambda end: None,
        hangs_s: float = HANGS_S,
        drain_s: float = DRAIN_S,
        policy_root: str | Path | None = None,
        watch: Options | None = None,
        state: str | Path | None = None,
        control: str | Path | None = None,
        audit: str | Path | AuditOptions | None = None,
        metrics: CollectorRegistry | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        from scope_runtime.lifecycle import Hosted, Options, Source

        info = check_model(command.model)
        self.shape = ModelShape(info.architecture, info.n_layer, info.n_embd)
        self.model_digest = f"sha256:{model_digest(info)}"
        self.command = command
        self._say = say
        self._drain_s = drain_s
        self._numbers = itertools.count(1)
        self._source = ProgramSource(None, self.shape)
        self._link: Link | None = None
        self._lost: list[Link] = []  # those that somebody may still read
        self._changing = threading.RLock()  # of link and source
        self._closing = threading.Event()
        self._trouble: str | None = "the server is starting"
        self._opened: Hosted | None = None
        self._drainer: threading.Thread | None = None
        options = watch or Options()
        self._fails_closed = options.fail == "closed"
        self._control_texts = control_texts(command.model)
        self._supervisor = Supervisor(
            command, self.shape, folder, say, hangs_s=hangs_s, steering=self._steered_by(folder)
        )
        leaving(self._supervisor.kill)
        try:
            self._records = Records(audit, metrics, sinks)
        except BaseException:
            self._supervisor.close()
            raise
        self._records.model_digest = self.model_digest
        try:
            self.record("start", Kind.RUNTIME, model=str(command.model), engine="llama-server")
            self._records.metrics.read(attached_reader(self))
            root = Path(policy_root) if policy_root else None
            self._opened = Hosted(
                self,
                Source(Path(policy), root) if isinstance(policy, (str, Path)) else policy,
                self._bench(),
                options,
                self._records.metrics,
                state=Path(state) if state is not None else None,
                control=Path(control) if control is not None else None,
            )
            self._follows(self._opened.lifecycle)
            # Policies first: a slip in them need not wait for gigabytes of weights.
            self._supervisor.begin(self)
            self._drainer = threading.Thread(target=self._drain, name="scope-events", daemon=True)
            self._drainer.start()
        except BaseException:
            self.close()
            raise

    # -- what another way to steer a server changes

    def _steered_by(self, folder: Path) -> Steering:
        """How servers that live in this folder come to be steered."""
        return Preloaded()

    def _bench(self) -> Bench:
        """What policies are compiled for."""
        from scope_runtime.lifecycle.build import Bench

        return Bench(self.shape)

    def _follows(self, lifecycle: Lifecycle) -> None:
        """Told what follows the policies, before there is a server."""

    def _told_of_effect(self) -> Mapping[str, str]:
        """What each request's record says of how its effect is known; nothing: the hook saw it."""
        return {}

    def _forget(self, request: Request) -> None:
        """The request needs its server no longer."""
        request.link.forget(request)

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

    def compiled(self, policies: Sequence[Policy]) -> ProgramSource:
        """Policies for this model, for a trial. Raises ScopeError where they cannot be carried out."""
        return ProgramSource(policies, self.shape)

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None:
        """Swaps in policies; see ``Runtime.take_up``. While there is no server they wait for the next one."""
        with self._changing:
            previous, link = self._source.revision, self._link
            swap_ms = hook_swap_ms = 0.0
            if link is not None and link.hook.alive:
                try:
                    now = now or source.apply is Apply.NEXT_TOKEN
                    swap_ms = link.programs.use(source, now=now)
                    hook_swap_ms = link.hook.status.swap_ns / 1e6
                except HookError:
                    if link.hook.alive:
                        raise  # else the next server takes them up
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

    @property
    def n_slots(self) -> int:
        """Slots of the server.

        Raises:
            EngineGone: there is none at the moment.
        """
        return self._linked().n_slots

    def _linked(self) -> Link:
        link = self._link
        if link is None:
            raise EngineGone("llama-server is not there")
        return link

    # Told by the supervisor

    def came(self, server: Attached) -> None:
        """It is proved: from here on requests are answered."""
        status, what = server.hook.status, "adopted" if server.adopted else "started"
        with self._changing:
            link = Link(server, self._source, self.model_digest)
            self._link, self._trouble = link, None
        self._say(f"llama-server {what}: process {status.pid}, {link.n_slots} slots")
        self._note(f"server-{what}", pid=status.pid, attach=list(status.words))

    def gone(self, server: Attached, how: str) -> None:
        """It has ended: what runs fails, and until there is another one nothing is answered."""
        self._say(f"llama-server is gone: {how}")
        link = self._link
        with self._changing:
            self._trouble, self._link = "the server is starting again", None
        if link is None:
            return  # closed meanwhile
        self._try_collect(link)
        self._note("server-lost", how=how, n_running=len(link.running))
        with self._changing:
            # The latest is kept in any case: whoever took it a moment ago may be about to begin.
            done = [each for each in self._lost if not each.running]
            self._lost = [each for each in self._lost if each.running] + [link]
        for each in done:
            each.server.close()

    def failed(self, error: Exception) -> None:
        """It does not start; it is tried again."""
        self._trouble = f"the server does not start: {error}"
        self._say(self._trouble)
        self._note("server-failed", **reasons(error))

    def _note(self, what: str, **detail: object) -> None:
        """Puts on record what happened to the server, if it can be: to go on is what matters here."""
        try:
            self.record(what, Kind.RUNTIME, **detail)
        except Exception as error:
            self._say(f"not on record: {what}: {error}")

    def end_server(self) -> None:
        """Ends the server at once: what it still works on is lost, and nobody waits for that any more."""
        self._supervisor.end_server()

    def close(self) -> None:
        """Ends the server, then closes the logs. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._opened is not None:
            self._opened.close()
        self._records.metrics.close()
        if self._drainer is not None:
            self._drainer.join()
        link, self._trouble = self._link, "the server is ending"
        if link is not None:
            self._try_collect(link)
        self._link = None
        self._supervisor.close()
        for each in self._lost:
            each.server.close()
        self._records.close()

    # -- requests

    def begin(
        self,
        slot: int,
        labels: Mapping[str, str],
        request_id: str,
        sampling: Sampling,
        timing: Timing,
        trial: ProgramSource | None = None,
    ) -> Request:
        """Takes a free slot for a request that is to be sent to it. Blocks for at most an ubatch.

        Args:
            trial: policies that this request alone runs under; see ``GenerateOptions``.

        Raises:
            EngineGone: there is no server at the moment.
            AuditError: it could not be put on record.
        """
        self._records.admit()
        link = self._linked()
        timing.begin()
        identity = RequestContext(dict(labels), request_id, trial)
        try:
            return link.begin(slot, next(self._numbers), identity, sampling, timing)
        except HookError:
            if link.hook.alive:
                raise
            raise EngineGone("llama-server is gone") from None

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
        link, running = request.link, request.running
        try:
            last, summed_up = link.end(request)
            spans = link.reader.revisions(last.spans) if last.spans is not None else ()
            link.collect(self.write)
            report = link.report(request, spans)
            program = link.programs.program_of(request.slot)
            # What failed by the server's end is told as that.
            lost = finish == "error" and not summed_up
            unsteered = None if lost else self._unsteered(request, last, summed_up, program)
            n_dropped = link.hook.status.n_dropped
        finally:
            self._forget(request)
        # A server that was ended before its first token did not say how long the prompt is.
        running.n_prompt = n_prompt or (-1 if last.answer_start is None else last.answer_start) + 1
        running.events += report
        summary = running.summary(
            spans,
            finish,
            sequence=request.slot,
            program=program,
            sampling=request.sampling,
            n_answer=n_answer,
            n_reused=n_reused,
            n_dropped=n_dropped,
            digests={
                **link.reader.digests(program),
                **self._told_of_effect(),
                **({"n_unsteered": last.n_unsteered} if last.n_unsteered else {}),
                **({"unsteered": unsteered} if unsteered else {}),
            },
            contents=running.contents((), lambda _: prompt, request.tokens, answer),
        )
        running.events.append(summary)
        self.write([*report, summary])
        return Ended(spans, tuple(running.events), unsteered)

    def _unsteered(
        self, request: Request, last: SlotState, summed_up: bool, program: Program
    ) -> str | None:
        """Whether something was computed otherwise than the policies say, and what; put on record, too."""
        told = request.link.unsteered(request, last, summed_up)
        if told is not None and program.hooks:
            request_id = request.running.request.request_id
            self.record("unsteered", Kind.RUNTIME, request_id=request_id, reason=told)
        return told

    def must_steer(self, request: Request) -> bool:
        """Whether no answer may go out that is not steered: its policies enforce, and ``fail`` is ``closed``."""
        return self._fails_closed and any(
            rule.mode is Mode.ENFORCE for rule in request.program.rules
        )

    def control_texts(self) -> list[str]:
        """Texts that a message must not have where a stranger wrote it: they count as control tokens."""
        return self._control_texts

    # -- events

    def _drain(self) -> None:
        """Takes events out of the ring while requests run, so that alerts are told when they fire."""
        while not self._closing.wait(_COLLECT_S):
            link = self._link
            if link is not None:
                self._try_collect(link)

    def _try_collect(self, link: Link) -> None:
        """As ``Link.collect``, where no request is there to fail by what a sink raises."""
        try:
            link.collect(self.write)
        except Exception as error:
            self._say(f"events are not on record: {error}")
