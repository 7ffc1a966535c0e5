"""A notification that says nothing but that notifications arrive."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

from scope_runtime.alerts.body import webhook_body
from scope_runtime.alerts.options import AlertOptions
from scope_runtime.alerts.states import Alert, State


def trial_bodies(receiver: str, options: AlertOptions, now: float) -> tuple[dict[str, Any], ...]:
    """An alert that fires, and its end, so that nobody is left with it."""
    labels = {
        **options.external_labels,
        "alertname": "scope-test",
        "policy": "none",
        "severity": "info",
        "test": "true",
    }
    about = {"summary": f"a test of the receiver {receiver}, sent from {socket.gethostname()}"}
    firing = Alert(tuple(sorted(labels.items())), State.FIRING, about, now, now, now, None, True, 1)
    resolved = replace(firing, state=State.RESOLVED, ends_at=now)
    return tuple(
        webhook_body(receiver, {"policy": "none"}, [alert], external_url=options.external_url)
        for alert in (firing, resolved)
    )
