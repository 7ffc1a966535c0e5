"""Drift of live traffic, as a sink: a sliding window of requests, looked at every so often beside the traffic."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scope_runtime.drift.baseline import Baseline
from scope_runtime.drift.compare import Criteria, Finding, Report, Verdict, compare
from scope_runtime.drift.measure import Collector, DriftError, Request, Watched, sample
from scope_runtime.drift.report import finding_data
from scope_runtime.errors import UsageError
from scope_runtime.events import Event, Kind

FIRING, RESOLVED, REFUSED = "drift", "drift-resolved", "drift-refused"
"""What the events are called; their kind is ``alert``."""


@dataclass(frozen=True, slots=True)
class Window:
    """How much of the traffic is held against the baseline, and how often.

    Attributes:
        requests: the newest so many.
        hours: none older than this.
        looks: how often each request is looked at on its way through the window: a look follows every
            requests / looks requests. The false-alarm rate is shared among them.
    """

    requests: int = 500
    hours: float = 24.0
    looks: int = 5

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        if not 20 <= self.requests <= 100_000:
            raise UsageError(
                "the window's requests are out of range",
                found=str(self.requests),
                expected="20 to 100000",
            )
        if not self.hours > 0:
            raise UsageError("the window's hours must be positive", found=str(self.hours))
        if not 1 <= self.looks <= 100:
            raise UsageError("looks is out of range", found=str(self.looks), expected="1 to 100")

    @property
    def every(self) -> int:
        """Requests from one look to the next, rounded up, so that there are never more looks than said."""
        return -(-self.requests // self.looks)


@dataclass(frozen=True, slots=True)
class RuleState:
    """One rule of the baseline, as the last look found it.

    Attributes:
        firing_since: when its drift was first seen, seconds since the epoch; None while there is none.
        psi: the largest of its measurements' indices; None before it could be judged.
        p: the smallest of their p-values.
        n_requests: in the window, with the rule.
        quiet_looks: looks in a row, since the last that found drift, that found none.
    """

    rule: Watched
    verdict: Verdict = Verdict.INSUFFICIENT
    firing_since: float | None = None
    psi: float | None = None
    p: float | None = None
    n_requests: int = 0
    quiet_looks: int = 0


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """Where the watching stands.

    Attributes:
        n_requests: in the window.
        n_looks: taken so far.
        looked_at: when the last was; None before the first.
        refused: why traffic and baseline cannot be compared; None while they can.
        n_forgotten: requests that never ended.
    """

    rules: tuple[RuleState, ...]
    n_requests: int
    n_looks: int
    looked_at: float | None
    refused: str | None
    n_forgotten: int


class DriftSink:
    """Holds a sliding window of requests against a baseline, in a thread of its own, and says when a rule drifts.

    A rule's drift is on record once, as an alert ``drift``; it is over, as ``drift-resolved``, when as many looks in a
    row found none as a request gets, so when none of the requests that gave it away is in the window any more.
    Memory is bounded by the window.

    Args:
        window: how much traffic.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        baseline: Baseline,
        criteria: Criteria | None = None,
        window: Window | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.window = window or Window()
        self.criteria = replace(criteria or Criteria(), looks=self.window.looks)
        if self.criteria.min_requests > self.window.requests:
            raise UsageError(
                "the window never holds as many requests as min_requests asks for",
                found=str(self.window.requests),
                expected=f"{self.criteria.min_requests} or more",
            )
        self._baseline = baseline
        self._clock = clock
        self._collector = Collector(baseline.labels)
        self._requests: deque[Request] = deque(maxlen=self.window.requests)
        self._states = {rule: RuleState(rule) for rule in baseline.sample.measured}
        self._changed = threading.Condition()
        self._since_look = 0
        self._n_looks = 0
        self._looking = False
        self._looked_at: float | None = None
        self._refused: str | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._record: Callable[[Sequence[Event]], None] | None = None
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    # -- its life

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Fills the window from an audit log's records, oldest first, and takes up which rules were drifting."""
        for record in records:
            if record.get("kind") == "alert":
                self._take_up(record)
            else:
                request = self._collector.add(record)
                if request is not None:
                    self._requests.append(request)

    def start(self, record: Callable[[Sequence[Event]], None]) -> None:
        """Begins to look.

        Args:
            record: takes the alerts; called from a thread of the sink's.
        """
        self._record = record
        self._thread.start()

    def close(self) -> None:
        """Ends after the look that is being taken. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._record is not None:
            self._thread.join()

    # -- callers

    def write(self, events: Sequence[Event]) -> None:
        """Takes events in order.

        Raises:
            ScopeError: an alert of before could not be put on record.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        with self._changed:
            for event in events:
                if event.kind in (Kind.REQUEST, Kind.POLICY):
                    request = self._collector.add(event.record())
                    if request is not None:
                        self._requests.append(request)
                        self._since_look += 1
            if self._due():
                self._changed.notify_all()

    def standing(self) -> list[Event]:
        """The alerts ``drift`` that are on record and not over, for whoever forgot them with an earlier process."""
        with self._changed:
            firing = [state for state in self._states.values() if state.firing_since is not None]
        return [
            self._event(FIRING, self._clock(), state.rule, {"since": state.firing_since})
            for state in firing
        ]

    def settle(self) -> None:
        """Returns when no look is due or being taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not (self._due() or self._looking))

    @property
    def status(self) -> DriftStatus:
        with self._changed:
            return DriftStatus(
                tuple(self._states.values()),
                len(self._requests),
                self._n_looks,
                self._looked_at,
                self._refused,
                self._collector.n_forgotten,
            )

    # -- looking

    def _due(self) -> bool:
        return self._since_look >= self.window.every

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._due())
                if self._closing:
                    return
                self._since_look = 0
                self._looking = True
                oldest = self._clock() - self.window.hours * 3600
                while self._requests and self._requests[0].time < oldest:
                    self._requests.popleft()
                requests = tuple(self._requests)
            try:
                events = self._look(requests)
                if events and self._record is not None:
                    self._record(events)
            except BaseException as error:
                # Whoever writes next hears of it: an alarm that is on no record must not pass unseen.
                self._failure = error
            finally:
                with self._changed:
                    self._looking = False
                    self._changed.notify_all()

    def _look(self, requests: Sequence[Request]) -> list[Event]:
        now = self._clock()
        report, refused = None, None
        try:
            report = compare(self._baseline.sample, sample(requests), self.criteria)
        except DriftError as error:
            refused = error
        with self._changed:
            self._n_looks += 1
            self._looked_at = now
            new = refused is not None and str(refused) != self._refused
            self._refused = str(refused) if refused is not None else None
        if refused is not None:
            return [self._event(REFUSED, now, None, refused.fields())] if new else []
        return self._judged(report, now) if report is not None else []

    def _judged(self, report: Report, now: float) -> list[Event]:
        events = []
        for finding in report.findings:
            before = self._states[finding.rule]
            after = _after(before, finding, now, self.window.looks)
            if (before.firing_since is None) != (after.firing_since is None):
                what = FIRING if before.firing_since is None else RESOLVED
                detail = finding_data(finding) | {"since": before.firing_since or now}
                events.append(self._event(what, now, finding.rule, detail))
            with self._changed:
                self._states[finding.rule] = after
        return events

    def _event(
        self, what: str, now: float, rule: Watched | None, detail: Mapping[str, Any]
    ) -> Event:
        digests = {"model": self._baseline.sample.model}
        policy = {"policy": rule.policy} if rule and rule.policy else {}
        return Event(
            kind=Kind.ALERT,
            what=what,
            time=now,
            labels=self._baseline.labels,
            rule=rule.rule if rule else None,
            op=rule.op if rule else None,
            mode=rule.mode if rule else None,
            features=rule.features if rule else (),
            detail={**policy, "severity": "warning", **detail, "digests": digests},
        )

    def _take_up(self, record: Mapping[str, Any]) -> None:
        what, since = record.get("what"), record.get("since")
        if what not in (FIRING, RESOLVED) or not isinstance(since, (int, float)):
            return
        for rule, state in self._states.items():
            same_policy = record.get("policy") in (None, rule.policy) or not rule.policy
            if record.get("rule") == rule.rule and same_policy:
                firing = float(since) if what == FIRING else None
                self._states[rule] = replace(state, firing_since=firing)


def _after(before: RuleState, finding: Finding, now: float, looks: int) -> RuleState:
    """A rule's state after a look. What cannot be judged neither fires nor resolves."""
    firing_since, quiet = before.firing_since, before.quiet_looks
    if finding.verdict is Verdict.DRIFT:
        firing_since, quiet = firing_since if firing_since is not None else now, 0
    elif finding.verdict is not Verdict.INSUFFICIENT:
        quiet += 1
        if quiet >= looks:
            firing_since = None
    return RuleState(
        finding.rule,
        finding.verdict,
        firing_since,
        finding.psi,
        finding.p,
        finding.n_window,
        quiet,
    )
