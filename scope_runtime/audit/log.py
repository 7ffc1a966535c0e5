"""The audit log as a sink: events go in from any thread, one thread writes them, an fsync serves many."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from scope_runtime.audit.canonical import Body
from scope_runtime.audit.contents import body_of
from scope_runtime.audit.keyfile import read_signing_key
from scope_runtime.audit.options import AuditOptions, OnFailure
from scope_runtime.audit.redact import Redaction, Selection, redaction_records
from scope_runtime.audit.status import AuditStatus
from scope_runtime.audit.store import NoSpaceError, Store, own_record, since_boot
from scope_runtime.errors import AuditError
from scope_runtime.events import Event, Kind

_MOST_RECORDS_A_BATCH = 1000
LONGEST_PAUSE_S = 1.0
"""Between looks at a disk that was full."""


class _Waiting:
    """A batch of events on their way to the disk, and since when (monotonic)."""

    __slots__ = ("body", "since")

    def __init__(self, body: Body, since: float) -> None:
        self.body = body
        self.since = since


class AuditLog:
    """An append-only log in a hash chain, with checkpoints; see docs/audit.md.

    ``write`` returns when the events are on the disk, but for what happens inside a request (alerts, the rules'
    summaries): that is on the disk when the write of the request's own summary returns.

    Args:
        options: where and how; a path alone means all defaults.
        clock: seconds since the epoch.
        steady: seconds since some moment, by a clock that nobody can set: what expires while the log is open does so by
            the slower of the two.

    Raises:
        AuditError: the log cannot be opened, somebody else writes it, or it is not as it was left.
    """

    def __init__(
        self,
        options: AuditOptions | str | Path,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = since_boot,
    ) -> None:
        self.options = options if isinstance(options, AuditOptions) else AuditOptions(options)
        key = read_signing_key(self.options.key) if self.options.key is not None else None
        self._store = Store(self.options, key, clock=clock, steady=steady)
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._under_way: Sequence[_Waiting] = ()
        self._jobs: deque[tuple[Callable[[], Redaction], Future[Redaction]]] = deque()
        self._taken_in = 0
        self._settled = 0
        self._written = 0
        self._dropped = 0
        self._unnoted = 0
        self._unnoted_since = 0.0
        self._trouble: str | None = None
        self._failing_since: float | None = None
        self._failed: str | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit-log", daemon=True)
        self._thread.start()

    # -- what others see

    @property
    def path(self) -> Path:
        """The segment that is written to."""
        return self._store.files.path

    @property
    def dropped(self) -> int:
        """Events lost since the log was opened."""
        return self._dropped

    @property
    def queued(self) -> int:
        """Events that are not on the disk yet."""
        return self._taken_in - self._settled

    @property
    def failed(self) -> str | None:
        """Why the log takes nothing any more; None while it does."""
        return self._failed

    @property
    def status(self) -> AuditStatus:
        """How it is doing right now."""
        with self._changed:
            oldest = next(iter([*self._under_way[:1], *list(self._queue)[:1]]), None)
            return AuditStatus(
                path=str(self.path),
                on_failure=self.options.on_failure,
                records_written=self._written,
                dropped=self._dropped,
                queued=self.queued,
                lag_s=time.monotonic() - oldest.since if oldest else 0.0,
                failing_since=self._failing_since,
                error=self._failed or self._trouble,
                final=self._failed is not None,
            )

    # -- callers

    def admit(self) -> None:
        """For whoever is about to begin a request: while the log cannot be written, does what ``on_failure`` says.

        ``block`` waits, ``drop`` lets everybody in, ``stop`` refuses.

        Raises:
            AuditError: no request may begin any more.
        """
        if self.options.on_failure is OnFailure.DROP:
            return
        with self._changed:
            while self._trouble and not self._failed:
                self._changed.wait()
            if self._failed:
                raise AuditError(
                    f"no request is served: the audit log {self.path} cannot be written",
                    found=self._failed,
                    hint="When the cause is removed, open it again: restart the process",
                )

    def write(self, events: Sequence[Event]) -> None:
        """Takes events in order.

        Raises:
            AuditError: they are not on record, and ``on_failure`` is not ``drop``; or one of them cannot be
                written as JSON.
        """
        if not events:
            return
        since = time.monotonic()
        bodies = [_Waiting(body_of(event), since) for event in events]
        wait = any(map(_ends_something, events))
        drops = self.options.on_failure is OnFailure.DROP
        with self._changed:
            while not drops and not self._failed and self._full(len(bodies)):
                self._changed.wait()
            if self._failed and not (drops and not self._closing):
                raise AuditError(f"the audit log {self.path} failed before", found=self._failed)
            if self._failed or self._full(len(bodies)):
                self._count_dropped(len(bodies))
                return
            self._queue.extend(bodies)
            self._taken_in += len(bodies)
            ticket = self._taken_in
            self._changed.notify_all()
            while wait and self._settled < ticket and not self._failed:
                self._changed.wait()
            if wait and self._settled < ticket and not drops:
                raise AuditError(f"the audit log {self.path} cannot be written", found=self._failed)

    def redact(self, selection: Selection, actor: str, reason: str) -> Redaction:
        """Erases prompts and outputs that are kept, and their salts; that it was done, by whom and why goes on record.

        Raises:
            AuditError: nothing is kept of what is selected, or the log cannot be written.
        """

        def work() -> Redaction:
            found = selection.find(self._store.files)
            records = redaction_records(found, selection, actor, reason, self._clock())
            # On record before it is done: what a crash leaves undone is seen, and done at the next opening.
            # And signed: a record behind the newest checkpoint anybody can have put there.
            self._append(records)
            self._store.checkpoint()
            self._store.erase({each.commitment for each in found})
            requests = {each.request_id for each in found if each.request_id is not None}
            return Redaction(len(found), len(requests))

        done: Future[Redaction] = Future()
        with self._changed:
            if self._failed or self._closing:
                why = self._failed or "it is closed"
                raise AuditError(f"the audit log {self.path} failed before", found=why)
            self._jobs.append((work, done))
            self._changed.notify_all()
        return done.result()

    def close(self) -> None:
        """Writes what waits, and a checkpoint of it all. Safe to call twice.

        Raises:
            AuditError: the checkpoint cannot be written, and ``on_failure`` is not ``drop``.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        try:
            if self._failed is None:
                if self._unnoted:
                    self._append(())
                self._store.checkpoint()
        except AuditError:
            if self.options.on_failure is not OnFailure.DROP:
                raise
        finally:
            self._failed = self._failed or "it is closed"
            self._store.close()

    def _full(self, n: int) -> bool:
        """A batch larger than the whole queue still gets its turn."""
        return bool(self._queue) and len(self._queue) + n > self.options.queue_records

    def _count_dropped(self, n: int) -> None:
        if not self._unnoted:
            self._unnoted_since = self._clock()
        self._dropped += n
        self._unnoted += n

    # -- the writer

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._jobs and not self._closing:
                    due_s = self._store.checkpoint_due_s()
                    if due_s == 0:
                        break
                    if self._unnoted and self._failed is None:
                        # Events were dropped. If nobody writes any, somebody has to look whether one could.
                        self._changed.wait(LONGEST_PAUSE_S)
                        break
                    self._changed.wait(due_s)
                n = min(len(self._queue), _MOST_RECORDS_A_BATCH)
                batch = self._under_way = [self._queue.popleft() for _ in range(n)]
                jobs = list(self._jobs)
                self._jobs.clear()
                if not batch and not jobs and self._closing:
                    return
                self._changed.notify_all()
            try:
                written = self._commit([each.body for each in batch])
                for job, done in jobs:
                    self._do(job, done)
                if self._store.checkpoint_due_s() == 0:
                    self._checkpoint()
            except BaseException as error:
                # A fault of ours; whoever waits must hear of it, or waits for ever.
                self._fail(f"{type(error).__name__}: {error}")
                for _, done in jobs:
                    if not done.done():
                        done.set_exception(error)
                raise
            with self._changed:
                self._under_way = ()
                if written:
                    self._settled += len(batch)
                self._changed.notify_all()

    def _commit(self, batch: Sequence[Body]) -> bool:
        """Writes a batch, under the rule of ``on_failure``; False where it is lost and that is an error."""
        if not batch and not self._unnoted:
            return True
        pause_s = 0.01
        while self._failed is None:
            try:
                self._append(batch)
                return True
            except NoSpaceError as error:
                reason = error.found or str(error)
                self._stumble(reason)
                if self.options.on_failure is OnFailure.DROP:
                    break
                if self.options.on_failure is OnFailure.BLOCK:
                    with self._changed:
                        if not self._closing:
                            self._changed.wait(pause_s)
                            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                            continue
                self._fail(reason)
            except AuditError as error:
                self._fail(error.found or str(error))
        if self.options.on_failure is not OnFailure.DROP:
            return False
        with self._changed:
            self._count_dropped(len(batch))
        return True

    def _do(self, job: Callable[[], Redaction], done: Future[Redaction]) -> None:
        try:
            done.set_result(job())
        except NoSpaceError as error:
            done.set_exception(error)
        except AuditError as error:
            if self._store.dead:
                self._fail(error.found or str(error))
            done.set_exception(error)
        except BaseException as error:
            done.set_exception(error)
            raise

    def _stumble(self, reason: str) -> None:
        """It cannot be written now, which may pass."""
        with self._changed:
            self._trouble = reason
            if self._failing_since is None:
                self._failing_since = self._clock()

    def _fail(self, reason: str) -> None:
        self._stumble(reason)
        with self._changed:
            self._failed = reason
            self._changed.notify_all()

    def _append(self, batch: Sequence[Body]) -> None:
        """Writes a batch; before it, where events were lost, how many."""
        n, since = self._unnoted, round(self._unnoted_since, 6)
        lost = [own_record("dropped", self._clock(), n_events=n, since=since)] if n else []
        self._store.append([*lost, *batch])
        with self._changed:
            self._unnoted -= n
            self._written += len(batch)
            self._trouble = self._failing_since = None
            self._changed.notify_all()

    def _checkpoint(self) -> None:
        try:
            self._store.checkpoint()
        except AuditError as error:
            # The records are safe. The next checkpoint covers them too; until then this is on record.
            self._store.note("checkpoint-failed", found=error.found)


def _ends_something(event: Event) -> bool:
    """Whether somebody relies on it being on record at once, rather than at the request's end."""
    return event.kind in (Kind.POLICY, Kind.RUNTIME) or event.what == "summary"
