"""Debian's Alertmanager and ours tell one receiver of the same alerts: bodies of one shape, fingerprints the same."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.alerts.book import AlertBook
from scope_runtime.alerts.options import AlertOptions, Receiver
from tests.alerts.conftest import ended, firing
from tests.support.alertmanager import alertmanager
from tests.support.webhook import Hook, webhook

POLICY = 'say "hi" \\ größe'
"""A value that spelling can go wrong on."""


def shape(value: Any) -> Any:
    """Keys and types, all the way down; of a list one of each shape."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted({repr(shape(inner)) for inner in value})
    return type(value).__name__


def moment(text: str) -> datetime:
    """Go writes as many digits as it has; Python of old reads three or six."""
    found = re.fullmatch(r"(.{19})(\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    assert found is not None, text
    digits = ((found[2] or ".") + "000000")[:7]
    return datetime.fromisoformat(f"{found[1]}{digits}{found[3].replace('Z', '+00:00')}")


def theirs(folder: Path, hook: Hook, ours: dict[str, Any], ends_at: str | None) -> dict[str, Any]:
    """What Alertmanager makes of the alerts that are in our body."""
    with alertmanager(folder, hook.url) as running:
        alerts = [
            {key: alert[key] for key in ("labels", "annotations", "startsAt", "generatorURL")}
            for alert in ours["alerts"]
        ]
        running.post(alerts)
        body = of_all(hook, len(alerts), "firing")
        if ends_at is not None:
            running.post([{**alert, "endsAt": ends_at} for alert in alerts])
            body = of_all(hook, len(alerts), "resolved")
        return body


def of_all(hook: Hook, n: int, status: str) -> dict[str, Any]:
    """The next body that has all alerts in this state; it may tell of them one by one before."""
    while True:
        body = hook.next().body
        if [alert["status"] for alert in body["alerts"]] == [status] * n:
            return body


@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_behaviour_22_bodies_are_alertmanagers(tmp_path: Path, status: str) -> None:
    now = datetime.now().timestamp() - 60
    with webhook() as hook:
        book = AlertBook(
            AlertOptions(
                window_s=10.0,
                group_wait_s=0.0,
                group_interval_s=0.0,
                request_labels=("tenant",),
                external_url="http://scope.example:9090",
                receivers=(Receiver("desk", hook.url),),
            ),
            clock=lambda: now,
        )
        for n, rule in enumerate(("watch", "other")):
            labels = {"tenant": f"t{n}"}
            book.observe([firing(f"r{n}", rule, policy=POLICY, labels=labels), ended(f"r{n}")])
        book.turn()
        assert book.attempt("desk")
        ours = hook.next()
        assert ours.body["status"] == "firing"
        if status == "resolved":
            now += 20
            book.turn()
            assert book.attempt("desk")
            ours = hook.next()
        book.close()
        body = ours.body
        ends = body["alerts"][0]["endsAt"] if status == "resolved" else None
        other = theirs(tmp_path, hook, body, ends)
        assert hook.got[-1].headers["Content-Type"] == ours.headers["Content-Type"]

    assert shape(body) == shape(other)
    assert body["status"] == other["status"] == status
    for key in (
        "version",
        "receiver",
        "groupLabels",
        "commonLabels",
        "commonAnnotations",
        "groupKey",
    ):
        assert body[key] == other[key], key
    assert body["truncatedAlerts"] == other["truncatedAlerts"] == 0

    def by_print(found: dict[str, Any]) -> dict[str, Any]:
        return {alert["fingerprint"]: alert for alert in found["alerts"]}

    assert by_print(body).keys() == by_print(other).keys()
    for fingerprint, alert in by_print(body).items():
        twin = by_print(other)[fingerprint]
        assert re.fullmatch(r"[0-9a-f]{16}", fingerprint)
        for key in ("status", "labels", "annotations", "generatorURL"):
            assert alert[key] == twin[key]
        for key in ("startsAt", "endsAt"):
            assert moment(alert[key]) == moment(twin[key])
