"""Which alerts share a notification, and when one is due: grouping, intervals, repetition, rate limits.

Nothing here knows of threads, files or the network; the time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scope_runtime.alerts.body import webhook_body
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.alerts.states import Alert, Labels, State

_MINUTE_S = 60.0


@dataclass(slots=True)
class Member:
    """An alert of a group, and what the receiver was told of it last; None: nothing."""

    alert: Alert
    told: State | None = None

    @property
    def news(self) -> bool:
        return self.told is not self.alert.state


@dataclass(slots=True)
class Group:
    """The alerts of one receiver that have the same group labels.

    Attributes:
        told_at: when a notification was last made; None: never.
    """

    receiver: str
    labels: Labels
    first_at: float
    told_at: float | None = None
    members: dict[Labels, Member] = field(default_factory=dict)

    @property
    def news(self) -> bool:
        return any(member.news for member in self.members.values())

    def data(self) -> dict[str, Any]:
        """As plain data, for the state file."""
        return {
            "receiver": self.receiver,
            "labels": dict(self.labels),
            "first_at": self.first_at,
            "told_at": self.told_at,
            "members": [
                {"alert": m.alert.data(), "told": None if m.told is None else str(m.told)}
                for m in self.members.values()
            ],
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Group:
        """What ``data`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        made = cls(
            receiver=str(data["receiver"]),
            labels=tuple(sorted((str(k), str(v)) for k, v in data["labels"].items())),
            first_at=float(data["first_at"]),
            told_at=None if data["told_at"] is None else float(data["told_at"]),
        )
        for each in data["members"]:
            alert = Alert.of(each["alert"])
            told = None if each["told"] is None else State(each["told"])
            made.members[alert.labels] = Member(alert, told)
        return made


@dataclass(slots=True)
class Groups:
    """All groups of all receivers.

    Attributes:
        n_limited: notifications that had to wait since the receiver had its fill, by receiver.
    """

    options: AlertOptions
    groups: dict[tuple[str, Labels], Group] = field(default_factory=dict)
    n_limited: dict[str, int] = field(default_factory=dict)
    _made: dict[str, deque[float]] = field(default_factory=dict)
    _waits: set[tuple[str, Labels]] = field(default_factory=set)

    def update(self, alerts: Iterable[Alert], now: float) -> None:
        """Takes alerts as they stand, firing or resolved."""
        for alert in alerts:
            labels = alert.label
            if not alert.webhook or alert.state is State.PENDING:
                continue
            for receiver in self.options.receivers:
                if receiver.wants(labels):
                    self._put(receiver, alert, labels, now)

    def _put(self, receiver: Receiver, alert: Alert, labels: dict[str, str], now: float) -> None:
        by = {name: labels[name] for name in self.options.group_by if name in labels}
        key = (receiver.name, tuple(sorted(by.items())))
        group = self.groups.get(key)
        if alert.state is State.RESOLVED and not receiver.send_resolved:
            if group is not None:
                group.members.pop(alert.labels, None)
                self._drop_empty(key, group)
            return
        if group is None:
            group = self.groups[key] = Group(*key, first_at=now)
        member = group.members.setdefault(alert.labels, Member(alert))
        if member.alert.starts_at != alert.starts_at and member.alert.state is State.RESOLVED:
            # Over and firing again before anybody was told that it was over: news all the same.
            member.told = None
        member.alert = alert

    def flush(self, now: float, *, at_once: bool = False) -> list[dict[str, Any]]:
        """The notifications that are due, as bodies; what they say counts as told.

        Args:
            at_once: all that is news, whatever intervals and limits say: there is no later.
        """
        receivers = {receiver.name: receiver for receiver in self.options.receivers}
        out = []
        due = sorted((self._due(group), key) for key, group in self.groups.items())
        for at, key in due:
            if not (self.groups[key].news if at_once else at <= now):
                continue
            receiver = receivers[key[0]]
            if self._free_at(receiver, now) > now and not at_once:
                if key not in self._waits:
                    self._waits.add(key)
                    self.n_limited[receiver.name] = self.n_limited.get(receiver.name, 0) + 1
                continue
            self._waits.discard(key)
            self._made[receiver.name].append(now)
            out.append(self._notify(receiver, self.groups[key], now))
            self._drop_empty(key, self.groups[key])
        return out

    def next_due(self, now: float) -> float | None:
        """When ``flush`` has something next; None: never, as things stand."""
        receivers = {receiver.name: receiver for receiver in self.options.receivers}
        due = [
            max(self._due(group), self._free_at(receivers[group.receiver], now))
            for group in self.groups.values()
        ]
        return max(min(due), now) if due else None

    def _due(self, group: Group) -> float:
        if group.told_at is None:
            return group.first_at + self.options.group_wait_s
        waits = self.options.group_interval_s if group.news else self.options.repeat_interval_s
        return group.told_at + waits

    def _free_at(self, receiver: Receiver, now: float) -> float:
        """When the receiver may be told next: no minute has more notifications than it wants."""
        made = self._made.setdefault(receiver.name, deque())
        while made and made[0] <= now - _MINUTE_S:
            made.popleft()
        if len(made) < receiver.max_per_minute:
            return now
        return made[len(made) - receiver.max_per_minute] + _MINUTE_S

    def _notify(self, receiver: Receiver, group: Group, now: float) -> dict[str, Any]:
        # News first, so that what does not fit is what was said before.
        members = sorted(group.members.values(), key=lambda m: (not m.news, m.alert.starts_at))
        n = receiver.max_alerts or len(members)
        said = members[:n]
        body = webhook_body(
            receiver.name,
            dict(group.labels),
            [member.alert for member in said],
            n_truncated=len(members) - len(said),
            external_url=self.options.external_url,
        )
        for member in said:
            member.told = member.alert.state
            if member.alert.state is State.RESOLVED:
                del group.members[member.alert.labels]
        group.told_at = now
        return body

    def _drop_empty(self, key: tuple[str, Labels], group: Group) -> None:
        if not group.members:
            self.groups.pop(key, None)
            self._waits.discard(key)

    def configure(self, options: AlertOptions) -> None:
        """Other receivers or intervals from here on; groups of receivers that are gone are forgotten."""
        self.options = options
        names = {receiver.name for receiver in options.receivers}
        for key in [key for key in self.groups if key[0] not in names]:
            del self.groups[key]
            self._waits.discard(key)
