"""The alert manager without its threads: events in, notifications out, everything kept; each step is a call.

``changed`` guards what is in memory and is never held during I/O, so that a token waits for nobody's disk or network.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scope_runtime.alerts.body import fingerprint
from scope_runtime.alerts.files import Kept
from scope_runtime.alerts.filing import Filing
from scope_runtime.alerts.groups import Groups
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.alerts.outbox import Notification, Outbox
from scope_runtime.alerts.records import alert_event, delivery_events, fired_event
from scope_runtime.alerts.send import Attempt, Verdict, send
from scope_runtime.alerts.states import (
    DOSE_EXCESS,
    DRIFT,
    DRIFT_RESOLVED,
    ENDS,
    AlertStates,
    Labels,
    State,
)
from scope_runtime.errors import ScopeError
from scope_runtime.events import Event, Kind

HEARTBEAT_S = 15.0
"""How often the state is kept while nothing but the time of the last firing changes."""

Post = Callable[[Receiver, dict[str, Any], str, float], Attempt]
Record = Callable[[Sequence[Event]], None]
_FAULT = Attempt(Verdict.RETRY, None, "a fault of ours; see the process' output")
_FIRED = ("firing", DOSE_EXCESS)
_SEEN = (*_FIRED, "resolved", *ENDS, DRIFT, DRIFT_RESOLVED)
_ON_THE_WAY_S = 5.0
"""How old an event may be when it is taken in, at most: it may have happened before the state was kept."""


@dataclass(frozen=True, slots=True)
class ReceiverCounts:
    """Of one receiver, since the start; ``waiting`` now.

    Attributes:
        made: notifications that were queued.
        delivered, dead: how they ended.
        failed: attempts that came to nothing.
        limited: notifications that had to wait for the rate limit.
    """

    made: int
    delivered: int
    dead: int
    failed: int
    limited: int
    waiting: int


def post_once(
    receiver: Receiver, body: dict[str, Any], notification_id: str, now: float
) -> Attempt:
    """``send``, as it is called here."""
    return send(receiver, body, notification_id, now=now)


class AlertBook:
    """All alerts of a process and whom they concern.

    Args:
        clock: seconds since the epoch.
        chance: draws from [0, 1), for the jitter.
        post: makes one attempt.

    Attributes:
        changed: notified when somebody may have something to do.
        n_unrecorded: events that the log did not take.

    Raises:
        AlertError: the state cannot be kept, or a receiver's address or secret is not there.
    """

    def __init__(
        self,
        options: AlertOptions,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        post: Post = post_once,
    ) -> None:
        self.options = options
        self.changed = threading.Condition()
        self.n_unrecorded = 0
        self._clock, self._chance, self._post = clock, chance, post
        self._states = AlertStates(options)
        self._groups = Groups(options)
        self._outboxes = {each.name: Outbox(options, chance) for each in options.receivers}
        self._raised: set[Labels] = set()
        self._record: Record | None = None
        self._must_turn = False
        self._must_save = True  # so that the next process knows since when to look
        self._saved_at = clock()
        for receiver in options.receivers:
            receiver.check()
        self._filing = Filing(options.state, options.dead_letter, clock)
        kept = self._filing.open()
        self._kept_at = kept.saved_at
        self._restore(kept)
        self._unsaid = [self._filing.lost] if self._filing.lost is not None else []

    def bind(self, record: Record) -> None:
        """Where events of ours go: the runtime's log. What happened before follows now."""
        self._record = record
        self._say([])

    # -- events in

    def observe(self, events: Iterable[Event]) -> None:
        """Takes what concerns alerts out of some events. Fast, never raises, waits for no I/O."""
        found = [e for e in events if e.what in _SEEN and not e.detail.get("trial")]
        if not found:
            return
        with self.changed:
            now = self._clock()
            before = len(self._states.alerts)
            news = False
            for event in found:
                news |= self._states.observe(event, now)
            self._must_save |= len(self._states.alerts) != before
            if news:
                self._must_turn = True
                self.changed.notify_all()

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Takes in what a log says of alerts since the state was kept last: its process ended before it could be.

        For the time before the first event. The requests ended with their process.
        """
        for record in records:
            at = record.get("time")
            fired = record.get("kind") == Kind.ALERT and record.get("what") in _FIRED
            fired = fired and not record.get("trial")
            if fired and isinstance(at, (int, float)) and at > self._kept_at - _ON_THE_WAY_S:
                with self.changed:
                    self._states.take_up(fired_event(record), at, self._clock())
                    self._must_turn = self._must_save = True
                    self.changed.notify_all()

    # -- time

    def turn(self) -> None:
        """Does what is due: alerts change their state, notifications are made, files are written."""
        with self.changed:
            now = self._clock()
            self._must_turn = False
            self._states.advance(now)
            events = self._advance(now)
            self._must_save |= bool(events)
            for body in self._groups.flush(now):
                self._queue(Notification(body["receiver"], body, now, now))
            resting = now - self._saved_at < HEARTBEAT_S or not self._states.alerts
            keep = self._must_save or not resting
            self._must_save = False
            self.changed.notify_all()
        self._file(keep)
        self._say(events)

    def _advance(self, now: float) -> list[Event]:
        """Hands alerts on to their groups; the events of those that are new or over."""
        ended = self._states.take_ended()
        firing = [alert for alert in self._states if alert.state is State.FIRING]
        self._groups.update(ended, now)
        self._groups.update(firing, now)
        events = []
        for alert in ended:
            if alert.labels not in self._raised:
                events.append(alert_event("raised", alert.starts_at, alert))
            events.append(alert_event("cleared", now, alert))
            self._raised.discard(alert.labels)
        for alert in firing:
            if alert.labels not in self._raised:
                self._raised.add(alert.labels)
                events.append(alert_event("raised", now, alert))
        return events

    def _queue(self, notification: Notification) -> None:
        pushed_out = self._outboxes[notification.receiver].add(notification)
        if pushed_out is not None:
            self._filing.add([(pushed_out, "the queue was full")])
        self._must_save = True

    def turn_due(self) -> float | None:
        """When ``turn`` has something to do next; None: not before something happens. Hold ``changed``."""
        now = self._clock()
        due = [self._states.next_due(now), self._groups.next_due(now)]
        if self._filing.due_at is not None:
            due.append(self._filing.due_at)
        elif self._must_save:
            due.append(now)
        if self._must_turn:
            due.append(now)
        if self._states.alerts and self._filing.keeps_state:
            due.append(max(self._saved_at + HEARTBEAT_S, self._filing.due_at or 0.0))
        return min((at for at in due if at is not None), default=None)

    # -- notifications out

    def attempt(self, name: str) -> bool:
        """Tries the receiver's next notification, if one is due; whether there was one."""
        with self.changed:
            outbox = self._outboxes.get(name)
            receiver = self._receiver(name)
            tried = outbox.take(self._clock()) if outbox is not None else None
        if outbox is None or tried is None or receiver is None:
            return False
        attempt = _FAULT
        try:
            attempt = self._post(receiver, tried.body, tried.id, self._clock())
        finally:
            self._settle(outbox, tried, attempt)
        return True

    def _settle(self, outbox: Outbox, tried: Notification, attempt: Attempt) -> None:
        with self.changed:
            dead = outbox.settle(attempt, self._clock())
            if dead:
                refused = attempt.verdict is Verdict.REFUSED
                why = attempt.words if refused else f"gave up: {attempt.words}"
                self._filing.add([(tried, why)])
            self._must_save = True
            self.changed.notify_all()
        self._file(keep=True)
        self._say(delivery_events(self._clock(), tried, attempt, dead=dead))

    def attempt_due(self, name: str) -> float | None:
        """When ``attempt`` has something to do next; None: not before something happens. Hold ``changed``."""
        outbox = self._outboxes.get(name)
        return outbox.next_due() if outbox is not None else None

    @property
    def receivers(self) -> frozenset[str]:
        """Those that are told now."""
        return frozenset(self._outboxes)

    def _receiver(self, name: str) -> Receiver | None:
        return next((each for each in self.options.receivers if each.name == name), None)

    # -- files and records

    def _file(self, keep: bool) -> None:
        if not self._filing.write(self._kept if keep else None):
            self._must_save |= keep

    def _kept(self) -> dict[str, Any]:
        """Everything that a restart must not lose."""
        with self.changed:
            self._must_save = False
            self._saved_at = self._clock()
            return {
                "saved_at": self._saved_at,
                "alerts": [alert.data() for alert in self._states],
                "groups": [group.data() for group in self._groups.groups.values()],
                "waiting": [
                    each.data() for outbox in self._outboxes.values() for each in outbox.waiting
                ],
            }

    def _restore(self, kept: Kept) -> None:
        now = self._clock()
        self._states.restore(kept.alerts, kept.saved_at, now)
        ahead_s = max(kept.saved_at - now, 0.0)  # the clock was put back meanwhile
        for group in kept.groups:
            group.first_at -= ahead_s
            group.told_at = None if group.told_at is None else group.told_at - ahead_s
        for notification in kept.waiting:
            notification.made_at -= ahead_s
            notification.next_at -= ahead_s
        self._raised = {a.labels for a in self._states if a.state is State.FIRING}
        self._groups.groups = {(each.receiver, each.labels): each for each in kept.groups}
        self._groups.configure(self.options)
        for notification in kept.waiting:
            outbox = self._outboxes.get(notification.receiver)
            if outbox is None:
                gone = "the receiver is not configured any more"
                self._filing.add([(notification, gone)])
            else:
                outbox.waiting.append(notification)

    def _say(self, events: list[Event]) -> None:
        with self.changed:
            said = [*self._unsaid, *events]
            self._unsaid = said if self._record is None else []
        if self._record is None or not said:
            return
        try:
            self._record(said)
            self._filing.troubles.pop("records", None)
        except ScopeError as error:
            self.n_unrecorded += len(said)
            self._filing.troubles["records"] = f"not on record: {error}"

    # -- from outside

    def configure(self, options: AlertOptions) -> None:
        """Takes up other options; the files stay where they are.

        Raises:
            AlertError: a receiver's address or secret is not there; nothing has changed.
        """
        for receiver in options.receivers:
            receiver.check()
        options = replace(options, state=self.options.state, dead_letter=self.options.dead_letter)
        with self.changed:
            self.options = self._states.options = options
            self._groups.configure(options)
            names = {receiver.name for receiver in options.receivers}
            for name in sorted(self._outboxes.keys() - names):
                gone = self._outboxes.pop(name).retire()
                self._filing.add((each, "the receiver was removed") for each in gone)
            for name in names - self._outboxes.keys():
                self._outboxes[name] = Outbox(options, self._chance)
            for outbox in self._outboxes.values():
                outbox.options = options
            self._must_turn = self._must_save = True
            self.changed.notify_all()

    def counts(self) -> dict[str, ReceiverCounts]:
        """By receiver."""
        with self.changed:
            return {
                name: ReceiverCounts(
                    **{key: getattr(box.counts, key) for key in box.counts.__slots__},
                    limited=self._groups.n_limited.get(name, 0),
                    waiting=len(box.waiting),
                )
                for name, box in self._outboxes.items()
            }

    def states(self) -> dict[str, int]:
        """How many alerts are pending and how many firing."""
        with self.changed:
            self._states.advance(self._clock())
            found = [alert.state for alert in self._states]
        return {str(state): found.count(state) for state in (State.PENDING, State.FIRING)}

    def status(self) -> dict[str, Any]:
        """What fires now, since when, and what is not delivered yet; nothing in it is secret."""
        counts = self.counts()
        with self.changed:
            self._states.advance(self._clock())
            alerts = [
                {"fingerprint": fingerprint(alert.labels), **alert.data()}
                for alert in sorted(self._states, key=lambda alert: (alert.active_at, alert.labels))
            ]
            return {
                "alerts": alerts,
                "receivers": [
                    {
                        "name": name,
                        **{key: getattr(counts[name], key) for key in ReceiverCounts.__slots__},
                        "oldest_at": box.waiting[0].made_at if box.waiting else None,
                        "next_at": box.waiting[0].next_at if box.waiting else None,
                        "error": box.waiting[0].error if box.waiting else None,
                    }
                    for name, box in self._outboxes.items()
                ],
                "folded": self._states.n_folded,
                "unrecorded": self.n_unrecorded,
                "trouble": "; ".join(self._filing.troubles.values()) or None,
            }

    def close(self) -> None:
        """Keeps what there is; without a state file, what was not delivered goes to the dead letters."""
        self.turn()
        with self.changed:
            if not self._filing.keeps_state:
                now = self._clock()
                for body in self._groups.flush(now, at_once=True):
                    self._queue(Notification(body["receiver"], body, now, now))
                for outbox in self._outboxes.values():
                    # Also what is under way: rather twice than never.
                    self._filing.add([(each, "the process ended") for each in outbox.waiting])
                    outbox.retire()
        self._file(keep=True)
        self._filing.close()
