"""What a receiver gets: Alertmanager's webhook, version 4, so that whatever takes Alertmanager's takes ours.

The form is that of Alertmanager's documentation ("webhook_config") and of its ``template.Data``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from scope_runtime.alerts.states import Alert, Labels, State

VERSION = "4"
NEVER = "0001-01-01T00:00:00Z"
"""The end of an alert that still fires: Go's zero time, as Alertmanager sends it."""

_FNV_OFFSET, _FNV_PRIME, _SEPARATOR = 0xCBF29CE484222325, 0x100000001B3, 0xFF


def webhook_body(
    receiver: str,
    group: Mapping[str, str],
    alerts: Sequence[Alert],
    *,
    n_truncated: int = 0,
    external_url: str = "",
) -> dict[str, Any]:
    """One notification of the alerts of a group, at least one."""
    described = [_alert(alert, external_url) for alert in alerts]
    firing = any(alert.state is State.FIRING for alert in alerts)
    return {
        "version": VERSION,
        "groupKey": group_key(group),
        "truncatedAlerts": n_truncated,
        "status": str(State.FIRING if firing else State.RESOLVED),
        "receiver": receiver,
        "groupLabels": dict(sorted(group.items())),
        "commonLabels": _common([each["labels"] for each in described]),
        "commonAnnotations": _common([each["annotations"] for each in described]),
        "externalURL": external_url,
        "alerts": described,
    }


def _alert(alert: Alert, external_url: str) -> dict[str, Any]:
    return {
        "status": str(alert.state),
        "labels": alert.label,
        "annotations": dict(sorted(alert.annotations.items())),
        "startsAt": rfc3339(alert.starts_at),
        "endsAt": NEVER if alert.ends_at is None else rfc3339(alert.ends_at),
        "generatorURL": external_url,
        "fingerprint": fingerprint(alert.labels),
    }


def group_key(group: Mapping[str, str]) -> str:
    """Tells groups apart, in Alertmanager's own spelling: route, colon, labels."""
    # JSON's quoted strings are Go's for all that a label holds but control characters.
    pairs = (f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in sorted(group.items()))
    return "{}:{" + ", ".join(pairs) + "}"


def fingerprint(labels: Labels) -> str:
    """FNV-1a, 64 bits, over names and values in order, as Prometheus computes it."""
    total = _FNV_OFFSET
    for pair in sorted(labels):
        for text in pair:
            for byte in (*text.encode("utf-8", "surrogatepass"), _SEPARATOR):
                total = (total ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
    return f"{total:016x}"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as receivers read times."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _common(each: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all of them have."""
    first, *others = each
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
