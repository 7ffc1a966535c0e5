"""The life of the policies in a running model: followed, checked, swapped in, kept, switched off, rolled back.

Every way to a reload (a file that changed, SIGHUP, the control socket) is ``Lifecycle.reload``; whatever fails on
the way leaves what was in force in force.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from scope_runtime.audit import AuditLog
from scope_runtime.errors import CompileError, Location, ScopeError
from scope_runtime.events import Event, Kind
from scope_runtime.lifecycle.build import Bench, Built
from scope_runtime.lifecycle.compiler import Compiler
from scope_runtime.lifecycle.in_force import InForce
from scope_runtime.lifecycle.memory import Memory
from scope_runtime.lifecycle.source import Source, contents
from scope_runtime.lifecycle.state import Active, State, StateError, Switch
from scope_runtime.lifecycle.types import (
    Builder,
    Cause,
    Counts,
    Feed,
    LastReload,
    Options,
    Outcome,
    Prepared,
    StaleRevision,
    Target,
)
from scope_runtime.policy.model import Policy
from scope_runtime.policy.revision import FileDigests
from scope_runtime.select import ProgramSource


class Lifecycle:
    """Keeps a model under the last good policies of a source. All methods may be called from any thread.

    Args:
        target: the runtime; ``take_up`` must be atomic between two tokens.
        source: what is followed.
        state: where what was in force outlives the process; None forgets it.
        builder: what compiles; by default a process of its own.
        feed: where the source comes from, where it is not simply there; ``source`` then says only where it would be.

    Attributes:
        nothing: no policies, for this model.
        before_off: called before steering is switched off, which waits for a change under way.
        effect: how it is known that the model is steered, where no hook observes it.
    """

    def __init__(
        self,
        target: Target,
        source: Source,
        bench: Bench,
        state: State | None,
        options: Options,
        *,
        builder: Builder | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.source = source
        self.state = state
        self.options = options
        self.feed = feed
        self._tried: str | None = None  # of the feed's contents, the latest that was built
        self._unfetched: str | None = None  # why the feed had none, as it is on record
        self._target = target
        self._digests = FileDigests()
        self._compiler: Builder = builder or Compiler(bench, nice=options.compile_nice)
        self.nothing = ProgramSource(None, bench.shape)
        off = ProgramSource(None, bench.shape, trials=False)
        self._in_force = InForce(target, self.nothing, off, state)
        self._memory = Memory(target, state)
        # A build may take seconds, and the switch does not wait for it: it has a lock of its own, taken after this.
        self._building = threading.RLock()
        self._closing = False
        self._held: Mapping[str, str] | None = None
        self._seen: Mapping[str, str] = {}
        self._named: tuple[str, ...] = ()
        self.counts = Counts()
        self.before_reload: Callable[[], Prepared] = Prepared
        self.before_off: Callable[[], None] = lambda: None
        self.alerts: Callable[[], dict[str, Any]] | None = None
        self.effect: str | None = None
        self.last: LastReload | None = None

    # -- what is

    @property
    def current(self) -> ProgramSource:
        """The last good policies; in force unless switched off."""
        return self._in_force.current

    @property
    def revision(self) -> str:
        """What tokens are computed under now: ``none`` while switched off."""
        return self._in_force.revision

    @property
    def switch(self) -> Switch | None:
        """Who switched steering off; None while it is on."""
        return self._in_force.switch

    @property
    def held(self) -> bool:
        """Whether an older set was chosen over what lies at the source."""
        return self._held is not None

    @property
    def acknowledged(self) -> bool:
        """Whether a token was computed under what is in force now."""
        return self._target.acknowledged

    @property
    def audit(self) -> AuditLog | None:
        """The target's audit log."""
        return self._target.audit

    def events(self) -> tuple[Event, ...]:
        """The target's latest events, oldest first."""
        return self._target.events()

    @property
    def named(self) -> tuple[str, ...]:
        """The files that the policies named when they were last looked at."""
        return self._named

    # -- start and end

    def start(self) -> None:
        """Takes up the source; if that cannot be, the last good set.

        Raises:
            ScopeError: there is neither, and ``fail`` is ``closed``.
        """
        cause = Cause("start", "start")
        with self._building:
            self._in_force.start(cause)
            active = self._memory.recall()
            built = self._first_build(cause)
            if active is not None and _same(active.held_against, built.seen):
                self._held = built.seen
                self._restore(active, cause)
                return
            try:
                self._accept(built, cause, "swapped")
            except ScopeError as error:
                self._refuse(error, cause)
                if active is not None:
                    if self.feed is not None and self.feed.latest is None:
                        self._held = active.held_against  # what it was chosen over may come again
                    self._restore(active, cause)
                elif self.options.fail == "closed":
                    raise

    def _first_build(self, cause: Cause) -> Built:
        try:
            if self.feed is not None:
                self.feed.ask()
            return self._build(cause)
        except ScopeError as error:
            return Built(None, error, {}, ())

    def close(self) -> None:
        """Ends the compiler, also in the middle of a build, which is then nobody's failure."""
        self._closing = True
        self._compiler.close()

    def _restore(self, active: Active, cause: Cause) -> None:
        """The kept set, each digest checked again. Raises ScopeError, unless it may start without one."""
        try:
            programs = self._kept(active.revision)
        except ScopeError as error:
            self._refuse(error, cause)
            if self.options.fail == "closed":
                raise
        else:
            self._in_force.take_up(programs, cause, "restored")

    # -- the one path of a reload

    def reload(self, cause: Cause, *, if_match: str | None = None) -> Outcome:
        """Load → check → compile → dry run → swap → on record.

        Args:
            if_match: the revision that the caller believes to be in force.

        Raises:
            ScopeError: why nothing has changed.
        """
        self._check_match(if_match)
        if self.feed is not None:
            try:  # before the lock: it may take its time, and going back must not wait for it
                self.feed.ask()
            except ScopeError as error:
                with self._building:
                    self._refuse(error, cause)
                raise
        return self._reload(cause, if_match)

    def _reload(self, cause: Cause, if_match: str | None = None) -> Outcome:
        with self._building:
            self._check_match(if_match)
            try:
                beside = self.before_reload()
                outcome = self._accept(self._build(cause), cause, "swapped", beside.commit)
            except ScopeError as error:
                self._refuse(error, cause)
                raise
            self.counts = Counts(self.counts.ok + 1, self.counts.refused)
            self.last = LastReload(time.time(), cause.trigger, None)
            notes = "; ".join(note for note in (beside.note, outcome.note) if note)
            return replace(outcome, note=notes or None)

    def follow(self) -> bool:
        """Looks whether the files changed since the last attempt, and if so reloads; True if it did.

        What is refused is on record and in ``last``: there is nobody to raise it to.
        """
        if self.feed is not None:
            return self.ask() and self.follow_asked()
        with self._building:
            now = contents(self.source, self._named, self._digests)
            if now == self._seen:
                return False
            with contextlib.suppress(ScopeError):
                self._reload(Cause("file", "file"))
            return True

    def ask(self) -> bool:
        """Asks the feed, which may take its time; false while closing.

        Why it has nothing is on record once, not each time that it is asked.
        """
        feed = self.feed
        if feed is None:
            return False
        trouble: str | None = None
        try:
            feed.ask()
        except ScopeError as error:
            trouble = str(error)
            if trouble != self._unfetched and not self._closing:
                self._target.record(
                    "fetch-failed", Kind.POLICY, in_force=self.revision, **error.fields()
                )
        else:
            if self._unfetched is not None and not self._closing:
                self._target.record("fetch-resumed", Kind.POLICY, bundle=feed.latest)
        self._unfetched = trouble
        return not self._closing

    def follow_asked(self) -> bool:
        """Reloads if the feed has another content than the one that was tried last; true if it did."""
        feed = self.feed
        if feed is None:
            return False
        with self._building:
            if feed.latest in (None, self._tried) or self._is_held_against(feed):
                return False
            with contextlib.suppress(ScopeError):
                self._reload(Cause("bundle", feed.status().where))
            return True

    def _is_held_against(self, feed: Feed) -> bool:
        return self._held is not None and sorted(self._held.values()) == sorted(feed.digests())

    def plan(self) -> tuple[ProgramSource, ProgramSource]:
        """What is loaded, and what a reload would load. Raises ScopeError where that would be refused."""
        if self.feed is not None:
            self.feed.ask()
        with self._building:
            source = self.source if self.feed is None else self.feed.source()
            programs = self._compiler.build(source, self._named).result()
            self._memory.check_generations(programs.policies)
            return self.current, programs

    def check(self, policies: tuple[Policy, ...]) -> None:
        """Refuses what a reload would refuse of policies that compile. Raises PolicyErrors."""
        self._memory.check_generations(policies)

    def change(self, write: Callable[[], Callable[[], None]], cause: Cause) -> Outcome:
        """Changes the source and reloads it; nobody looks at the files between the two.

        Args:
            write: changes the files, and gives what undoes that, for a reload that is refused.

        Raises:
            ScopeError: why nothing has changed.
        """
        with self._building:
            undo = write()
            try:
                return self._reload(cause)
            except ScopeError:
                undo()
                raise

    def record(self, what: str, cause: Cause, **detail: object) -> None:
        """Puts on record what was done to policies by somebody."""
        self._target.record(what, Kind.POLICY, **cause.fields(), **detail)

    def _build(self, cause: Cause) -> Built:
        if self.feed is not None:
            self._tried = self.feed.latest
            self.source = self.feed.source()
        try:
            built = self._compiler.build(self.source, self._named)
        except CompileError as error:
            built = Built(
                None, error, contents(self.source, self._named, self._digests), self._named
            )
        self._seen, self._named = built.seen, built.named
        return built

    def _accept(
        self, built: Built, cause: Cause, what: str, commit: Callable[[], None] = lambda: None
    ) -> Outcome:
        programs = built.result()
        self._memory.check_generations(programs.policies)
        commit()
        previous = self.current
        changed = programs.revision != previous.revision
        if changed:
            self._in_force.take_up(programs, cause, what)
        self._held = None
        note = self._memory.keep(self.source, programs, built.seen, self.feed)
        return Outcome(programs.revision, previous.revision, changed, note)

    def _refuse(self, error: ScopeError, cause: Cause) -> None:
        if self._closing:
            return
        self.counts = Counts(self.counts.ok, self.counts.refused + 1)
        self.last = LastReload(time.time(), cause.trigger, error)
        self._target.record(
            "refused",
            Kind.POLICY,
            policy=str(self.source.path),
            in_force=self.revision,
            **cause.fields(),
            **error.fields(),
        )

    def _check_match(self, if_match: str | None) -> None:
        if if_match is not None and if_match != self.current.revision:
            raise StaleRevision(
                "another revision is loaded by now",
                found=self.current.revision,
                expected=if_match,
                hint="Look at what is loaded, then ask again",
            )

    # -- back to what was

    def rollback(
        self, cause: Cause, *, to: str | None = None, if_match: str | None = None
    ) -> Outcome:
        """Puts a kept set in force, and holds it until the files change or somebody asks for a reload.

        Args:
            to: its revision; by default the one that was in force before the present one, never one that was rolled
                back from.

        Raises:
            StateError: there is none, or it is not what was kept.
        """
        with self._building:
            self._check_match(if_match)
            previous = self.current
            try:
                programs = self._kept(to or self._memory.before(previous.revision))
            except ScopeError as error:
                self._refuse(error, cause)
                raise
            self._in_force.take_up(programs, cause, "rolled-back", now=True)
            self._held = self._seen = contents(self.source, self._named, self._digests)
            note = self._memory.went_back(programs, self._held)
            changed = programs.revision != previous.revision
            return Outcome(programs.revision, previous.revision, changed, note)

    def _kept(self, revision: str) -> ProgramSource:
        if self.state is None:
            raise StateError("no revisions are kept: there is no state directory")
        source = self.state.source_of(revision)
        if self.feed is not None:
            self.feed.vouch(self.state.archive_of(revision), source)
        programs = self._compiler.build(source).result()
        if programs.revision != revision:
            raise StateError(
                "a kept set was altered",
                location=Location(str(source.path)),
                found=programs.revision,
                expected=revision,
            )
        return programs

    # -- the switch

    def off(self, cause: Cause) -> str | None:
        """Stops all steering by the next token; see ``InForce.off``."""
        self.before_off()
        return self._in_force.off(cause)

    def on(self, cause: Cause) -> None:
        """Steers again, under the last good policies; see ``InForce.on``."""
        self._in_force.on(cause)

    def follow_switch(self) -> None:
        """Does what the switch file says."""
        self._in_force.follow_switch()


def _same(one: Mapping[str, str] | None, other: Mapping[str, str]) -> bool:
    """Whether two looks saw the same files, wherever they lie."""
    return one is not None and sorted(one.values()) == sorted(other.values())
