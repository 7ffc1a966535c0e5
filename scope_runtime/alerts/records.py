"""What goes on record of alerts over all requests, and of notifications; ``kind`` is ``alert`` in each."""

from __future__ import annotations

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
