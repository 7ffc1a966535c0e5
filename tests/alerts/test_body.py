"""What a receiver reads; test_alertmanager.py compares it with Alertmanager's own."""

from __future__ import annotations

import pytest

from scope_runtime.alerts.body import fingerprint, group_key, rfc3339, webhook_body
from scope_runtime.alerts.states import Alert, State


def alert(state: State = State.FIRING, **labels: str) -> Alert:
    about = {"summary": f"{labels['alertname']} fires", "mode": "enforce"}
    ends = 1_800_000_060.5 if state is State.RESOLVED else None
    pairs = tuple(sorted(labels.items()))
    return Alert(pairs, state, about, 1_800_000_000.25, 0.0, 1_800_000_000.25, ends, True, 1)


def test_a_body_whole() -> None:
    first = alert(alertname="a", policy="p", severity="critical")
    second = alert(State.RESOLVED, alertname="b", policy="p", severity="critical")
    assert webhook_body(
        "desk",
        {"policy": "p"},
        [first, second],
        n_truncated=3,
        external_url="https://scope.example",
    ) == {
        "version": "4",
        "groupKey": '{}:{policy="p"}',
        "truncatedAlerts": 3,
        "status": "firing",
        "receiver": "desk",
        "groupLabels": {"policy": "p"},
        "commonLabels": {"policy": "p", "severity": "critical"},
        "commonAnnotations": {"mode": "enforce"},
        "externalURL": "https://scope.example",
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": "a", "policy": "p", "severity": "critical"},
                "annotations": {"mode": "enforce", "summary": "a fires"},
                "startsAt": "2027-01-15T08:00:00.250000Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "https://scope.example",
                "fingerprint": fingerprint(first.labels),
            },
            {
                "status": "resolved",
                "labels": {"alertname": "b", "policy": "p", "severity": "critical"},
                "annotations": {"mode": "enforce", "summary": "b fires"},
                "startsAt": "2027-01-15T08:00:00.250000Z",
                "endsAt": "2027-01-15T08:01:00.500000Z",
                "generatorURL": "https://scope.example",
                "fingerprint": fingerprint(second.labels),
            },
        ],
    }


def test_all_resolved_is_resolved() -> None:
    body = webhook_body("desk", {}, [alert(State.RESOLVED, alertname="a")])
    assert (body["status"], body["groupKey"]) == ("resolved", "{}:{}")


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ({"b": "2", "a": "1"}, '{}:{a="1", b="2"}'),
        ({"a": 'say "hi" \\ ü'}, '{}:{a="say \\"hi\\" \\\\ ü"}'),
    ],
)
def test_group_keys(group: dict[str, str], key: str) -> None:
    assert group_key(group) == key


def test_the_fingerprint_of_nothing_is_fnvs_offset() -> None:
    """FNV-1a's published offset basis; the rest is compared with Alertmanager's."""
    assert fingerprint(()) == "cbf29ce484222325"


def test_a_time_of_whole_seconds_keeps_its_fraction() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000000Z"
