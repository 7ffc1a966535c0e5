"""What fires now, over all requests: inactive → pending → firing → resolved, for each alert.

Nothing here knows of threads, files or receivers; the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scope_runtime.alerts.options import AlertOptions
from scope_runtime.events import Event, Kind
from scope_runtime.policy.model import Action, Severity
from scope_runtime.types import StrEnum

Labels = tuple[tuple[str, str], ...]
"""Sorted pairs: an alert's identity."""

DOSE_EXCESS = "dose-excess"
DRIFT, DRIFT_RESOLVED = "drift", "drift-resolved"
ENDS = ("rule", "summary")
"""What is said when a request ends: what its rules did; one without an answer (logits) has no summary."""
LONGEST_REQUEST_S = 3600.0
"""A request whose end nobody reported must not keep an alert firing for ever."""
FORGET_AFTER_S = 3600.0
"""After a longer outage what was only pending begins anew."""


class State(StrEnum):
    """Where an alert stands; one that is inactive is not kept, a resolved one only until all are told."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, as of now.

    Attributes:
        labels: its identity.
        annotations: what people want to know beside it; of the firing that began it.
        active_at: since when its rule goes on firing.
        seen_at: when its rule fired last.
        starts_at: since when it is firing; ``active_at`` while it is pending.
        ends_at: when it was over; None before.
        webhook: whether its policy asks for receivers to be told.
        n_firings: how often its rule began to fire in a request.
        held: it fires until an event says that it is over; no request of its own keeps it firing.
    """

    labels: Labels
    state: State
    annotations: Mapping[str, str]
    active_at: float
    seen_at: float
    starts_at: float
    ends_at: float | None
    webhook: bool
    n_firings: int
    held: bool = False

    @property
    def label(self) -> dict[str, str]:
        """The labels by name."""
        return dict(self.labels)

    def data(self) -> dict[str, Any]:
        """As plain data, for the state file and for ``scope alerts``."""
        return {
            "labels": self.label,
            "state": str(self.state),
            "annotations": dict(self.annotations),
            "active_at": self.active_at,
            "seen_at": self.seen_at,
            "starts_at": self.starts_at,
            "ends_at": self.ends_at,
            "webhook": self.webhook,
            "n_firings": self.n_firings,
            "held": self.held,
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Alert:
        """What ``data`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            labels=tuple(sorted((str(k), str(v)) for k, v in data["labels"].items())),
            state=State(data["state"]),
            annotations={str(k): str(v) for k, v in data["annotations"].items()},
            active_at=float(data["active_at"]),
            seen_at=float(data["seen_at"]),
            starts_at=float(data["starts_at"]),
            ends_at=None if data["ends_at"] is None else float(data["ends_at"]),
            webhook=bool(data["webhook"]),
            n_firings=int(data["n_firings"]),
            held=bool(data.get("held", False)),
        )


@dataclass(slots=True)
class AlertStates:
    """All alerts that are pending or firing.

    Attributes:
        alerts: by identity.
        ended: those that were resolved, until somebody takes them (``take_ended``).
        n_folded: firings whose request labels were left out, since there were too many alerts.
    """

    options: AlertOptions
    alerts: dict[Labels, Alert] = field(default_factory=dict)
    ended: list[Alert] = field(default_factory=list)
    n_folded: int = 0
    _open: dict[str, dict[Labels, float]] = field(default_factory=dict)
    """By request: the alerts whose rules are firing in it, since when."""

    # -- what happens

    def observe(self, event: Event, now: float) -> bool:
        """Takes an event in; whether anything came of it.

        The events of a request come in its order; ``now`` never goes back.
        """
        if event.kind is Kind.ALERT:
            # First what time has brought: a firing after a long rest is another one.
            self.advance(now)
        if event.kind is Kind.ALERT and event.what == "firing":
            labels = self._fires(event, now)
            if event.request_id is not None:
                self._open.setdefault(event.request_id, {}).setdefault(labels, now)
            return True
        if event.kind is Kind.ALERT and event.what == DOSE_EXCESS and self.options.dose_excess:
            self._fires(event, now)
            return True
        if event.kind is Kind.ALERT and event.what in (DRIFT, DRIFT_RESOLVED):
            return self.options.drift and self._drifts(event, now)
        if event.request_id is None or event.request_id not in self._open:
            return False
        if event.kind is Kind.ALERT and event.what == "resolved":
            return self._rests(event, now)
        if event.kind is Kind.REQUEST and event.what in ENDS:
            for labels in self._open.pop(event.request_id):
                self._see(labels, now)
            return True
        return False

    def take_up(self, event: Event, at: float, now: float) -> None:
        """A firing that an earlier process saw at a time of its own, if it did not keep it; its request is over."""
        old = self.alerts.get(self._identity(event))
        if old is None or old.seen_at < at:
            self._fires(event, now)

    def _drifts(self, event: Event, now: float) -> bool:
        """What is seen over many requests begins and ends by events of its own."""
        begins = event.what == DRIFT
        labels = self._fires(event, now) if begins else self._identity(event)
        if labels not in self.alerts:
            return False
        self._see(labels, now)
        self.alerts[labels] = replace(self.alerts[labels], held=begins)
        return True

    def _rests(self, event: Event, now: float) -> bool:
        rule, policy = self._names(event)
        resting = [
            labels
            for labels in self._open[event.request_id or ""]
            if dict(labels)["alertname"] == rule and dict(labels)["policy"] == policy
        ]
        for labels in resting:
            del self._open[event.request_id or ""][labels]
            self._see(labels, now)
        return bool(resting)

    def _fires(self, event: Event, now: float) -> Labels:
        labels = self._identity(event)
        old = self.alerts.get(labels)
        webhook = event.what in (DOSE_EXCESS, DRIFT) or (
            Action.WEBHOOK in event.detail.get("actions", ())
        )
        if old is None:
            state = State.PENDING if self.options.for_s > 0 else State.FIRING
            about = about_firing(event)
            self.alerts[labels] = Alert(labels, state, about, now, now, now, None, webhook, 1)
        else:
            if not self._is_open(labels) and now - old.seen_at >= self.options.window_s:
                self.alerts[labels] = replace(old, active_at=now)
            self._see(labels, now)
            seen = self.alerts[labels]
            self.alerts[labels] = replace(seen, webhook=webhook, n_firings=seen.n_firings + 1)
        return labels

    def _see(self, labels: Labels, now: float) -> None:
        """The rule is, or was until now, firing."""
        alert = self.alerts.get(labels)
        if alert is None:
            return
        alert = replace(alert, seen_at=max(now, alert.seen_at))
        if alert.state is State.PENDING:
            fires = alert.seen_at - alert.active_at >= self.options.for_s
            alert = replace(
                alert,
                state=State.FIRING if fires else State.PENDING,
                starts_at=alert.seen_at if fires else alert.active_at,
            )
        self.alerts[labels] = alert

    # -- what time brings

    def advance(self, now: float) -> None:
        """Brings every alert to where it stands at ``now``."""
        for request, alerts in list(self._open.items()):
            for labels, since in list(alerts.items()):
                # By request: the longest that one is believed to run.
                if now - since > LONGEST_REQUEST_S:
                    del alerts[labels]
                    continue
                self._see(labels, now)
            if not alerts:
                del self._open[request]
        for labels in [labels for labels, alert in self.alerts.items() if alert.held]:
            self._see(labels, now)
        for labels, alert in list(self.alerts.items()):
            over = self._over_at(alert)
            if self._is_open(labels) or now < over:
                continue
            del self.alerts[labels]
            if alert.state is State.FIRING:
                self.ended.append(replace(alert, state=State.RESOLVED, ends_at=over))

    def next_due(self, now: float) -> float | None:
        """When time alone changes something next; None: never."""
        due = [
            self._over_at(alert)
            for labels, alert in self.alerts.items()
            if not self._is_open(labels)
        ]
        for alerts in self._open.values():
            due += [since + LONGEST_REQUEST_S + 1 for since in alerts.values()]
        due += [
            alert.active_at + self.options.for_s
            for labels, alert in self.alerts.items()
            if alert.state is State.PENDING and self._is_open(labels)
        ]
        return max(min(due), now) if due else None

    def _over_at(self, alert: Alert) -> float:
        kept = self.options.keep_firing_for_s if alert.state is State.FIRING else 0.0
        return alert.seen_at + self.options.window_s + kept

    def _is_open(self, labels: Labels) -> bool:
        alert = self.alerts.get(labels)
        held = alert is not None and alert.held
        return held or any(labels in alerts for alerts in self._open.values())

    def take_ended(self) -> list[Alert]:
        """The alerts that were resolved since this was last asked."""
        ended, self.ended = self.ended, []
        return ended

    def restore(self, alerts: Iterable[Alert], saved_at: float, now: float) -> None:
        """Takes up what an earlier process left.

        While no process ran nothing was seen, so that time counts neither towards ``for`` nor towards the end. What
        was held is no longer: whoever holds it says so again.
        """
        # Less than nothing where the clock was put back meanwhile.
        down_s = now - saved_at
        for alert in (replace(each, held=False) for each in alerts):
            if alert.state is State.FIRING:
                seen_at = alert.seen_at + down_s
                self.alerts[alert.labels] = replace(
                    alert,
                    active_at=min(alert.active_at, now),
                    seen_at=seen_at,
                    starts_at=min(alert.starts_at, now),
                )
            elif alert.state is State.PENDING and down_s <= FORGET_AFTER_S:
                self.alerts[alert.labels] = replace(
                    alert,
                    active_at=alert.active_at + down_s,
                    seen_at=alert.seen_at + down_s,
                    starts_at=alert.starts_at + down_s,
                )

    def __iter__(self) -> Iterator[Alert]:
        return iter(self.alerts.values())

    # -- who it is

    def _names(self, event: Event) -> tuple[str, str]:
        if event.what in (DRIFT, DRIFT_RESOLVED):
            # The rule has alerts of its own; this is none of them.
            return DRIFT, str(event.detail.get("policy") or "")
        return event.rule or DOSE_EXCESS, str(event.detail.get("policy") or "")

    def _identity(self, event: Event) -> Labels:
        rule, policy = self._names(event)
        own = {
            **self.options.external_labels,
            "alertname": rule,
            "policy": policy,
            "severity": str(event.detail.get("severity") or Severity.WARNING),
        }
        if event.what in (DRIFT, DRIFT_RESOLVED) and event.rule is not None:
            own["rule"] = event.rule
        told = {
            name: event.labels[name]
            for name in self.options.request_labels
            if event.labels.get(name)
        }
        labels = tuple(sorted({**told, **own}.items()))
        if told and labels not in self.alerts and len(self.alerts) >= self.options.max_alerts:
            self.n_folded += 1
            return tuple(sorted(own.items()))
        return labels


def about_firing(event: Event) -> dict[str, str]:
    """What a person wants to know of the firing that began an alert. Nothing of the prompt or the answer."""
    out = {"summary": _summary(event)}
    for key in ("revision", "position"):
        if event.detail.get(key) is not None:
            out[key] = str(event.detail[key])
    if event.request_id is not None:
        out["request_id"] = event.request_id
    if event.mode is not None:
        out["mode"] = str(event.mode)
    if event.features:
        out["features"] = ", ".join(event.features)
    if event.detail.get("psi") is not None:
        out["psi"] = f"{event.detail['psi']:g}"
    for key in ("activation", "dose"):
        most = (event.detail.get(key) or {}).get("max")
        if most is not None:
            out[key] = f"{most:g}"
    return out


def _summary(event: Event) -> str:
    policy = event.detail.get("policy") or "a policy"
    if event.what == DOSE_EXCESS:
        return f"the dose limit of {policy} acted"
    if event.what == DRIFT:
        return f"what {event.rule} of {policy} measures is not what it was: the traffic or the model changed"
    return f"{event.rule} of {policy} fires"
