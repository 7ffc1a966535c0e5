"""What goes on record of alerts over all requests, and of notifications; ``kind`` is ``alert`` in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scope_runtime.alerts.body import fingerprint
from scope_runtime.alerts.outbox import Notification
from scope_runtime.alerts.send import Attempt, Verdict
from scope_runtime.alerts.states import Alert
from scope_runtime.events import Event, Kind


def alert_event(what: str, now: float, alert: Alert) -> Event:
    """An alert over all requests is ``raised`` or ``cleared``."""
    label = alert.label
    return Event(
        kind=Kind.ALERT,
        what=what,
        time=now,
        rule=label["alertname"],
        detail={
            "policy": label["policy"],
            "severity": label["severity"],
            "alert_labels": label,
            "fingerprint": fingerprint(alert.labels),
            "starts_at": alert.starts_at,
            **({} if alert.ends_at is None else {"ends_at": alert.ends_at}),
        },
    )


def delivery_events(
    now: float, tried: Notification, attempt: Attempt, *, dead: bool
) -> list[Event]:
    """An attempt ended in ``notified`` or ``notify-failed``; the last one also in ``dead-letter``."""
    first = "notified" if attempt.verdict is Verdict.DELIVERED else "notify-failed"
    return [
        Event(
            kind=Kind.ALERT,
            what=what,
            time=now,
            detail={
                "receiver": tried.receiver,
                "notification": tried.id,
                "status": tried.body["status"],
                "group": tried.body["groupKey"],
                "fingerprints": [alert["fingerprint"] for alert in tried.body["alerts"]],
                "attempts": tried.attempts,
                "answer": attempt.words,
            },
        )
        for what in ((first, "dead-letter") if dead else (first,))
    ]


def fired_event(record: Mapping[str, Any]) -> Event:
    """The event ``firing`` or ``dose-excess`` of a log's record, as far as an alert is made of it."""
    labels, features, mode = record.get("labels"), record.get("features"), record.get("mode")
    return Event(
        kind=Kind.ALERT,
        what=str(record["what"]),
        time=float(record["time"]),
        request_id=record.get("request_id"),
        labels=dict(labels) if isinstance(labels, dict) else {},
        rule=record.get("rule"),
        features=tuple(map(str, features)) if isinstance(features, list) else (),
        mode=None if mode is None else str(mode),
        detail={key: record[key] for key in _OF_AN_ALERT if record.get(key) is not None},
    )


_OF_AN_ALERT = ("policy", "severity", "actions", "revision", "position", "activation", "dose")
