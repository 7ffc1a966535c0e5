"""The watch on live traffic: alarms once, resolves once, forgets what is old, comes back after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.audit import AuditLog
from scope_runtime.audit.segments import LogFiles
from scope_runtime.drift import Criteria, DriftSink, Verdict, Window
from scope_runtime.drift.sources import newest
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.events import Event, Kind
from tests.support.drift_traffic import TIMES, answered, baseline, bound, drawn

WINDOW, CRITERIA = Window(requests=100, looks=5), Criteria(min_requests=60)
NOW = 2000.0


@contextmanager
def running(sink: DriftSink) -> Iterator[list[Event]]:
    recorded: list[Event] = []
    sink.start(recorded.extend)
    try:
        yield recorded
    finally:
        sink.close()
        sink.close()


def watch(seed: int = 1, window: Window = WINDOW, criteria: Criteria = CRITERIA) -> DriftSink:
    return DriftSink(baseline(seed, 200), criteria, window, clock=lambda: NOW)


def send(sink: DriftSink, seed: int, n: int, shift: float = 0.0, **options: str) -> None:
    """Waits for each look, so that what is seen does not depend on how fast the machine is."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        sink.write(answered(seed * 1000 + i, drawn(rng, shift), time=NOW, **options))
        sink.settle()


def test_drift_is_on_record_once_and_so_is_its_end() -> None:
    sink = watch()
    with running(sink) as recorded:
        send(sink, 1, 100)
        assert recorded == []
        assert sink.status.n_looks == 5
        assert [state.verdict for state in sink.status.rules] == [Verdict.STABLE] * 2
        send(sink, 2, 200, shift=2.0)
        [event] = [event for event in recorded if event.rule == "dense"]
        assert (event.kind, event.what, event.mode) == (Kind.ALERT, "drift", "audit")
        assert event.features == ("f (layer 1, id 2)",)
        assert event.detail["policy"] == "p"
        assert event.detail["psi"] > 0.25
        assert event.detail["since"] == NOW
        assert event.record()["digests"] == {"model": "sha256:model"}
        assert sink.status.rules[0].firing_since == NOW
        send(sink, 3, 300)
        assert [e.what for e in recorded if e.rule == "dense"] == ["drift", "drift-resolved"]
        assert sink.status.rules[0].firing_since is None
        # Its own alerts come back to it as to every sink.
        sink.write(recorded)
    assert len(sink._requests) == 100


def test_false_alarms_in_a_windows_worth_of_traffic_are_as_rare_as_said() -> None:
    """Five looks share the rate. 50 watches, each with a baseline and a full turn of traffic of its own."""
    alarmed, n, rate = 0, 50 * TIMES, 0.05
    criteria = Criteria(min_requests=20, false_alarm_rate=rate, psi=0.0)
    for seed in range(n):
        sink = DriftSink(baseline(seed, 60), criteria, Window(40, looks=5), clock=lambda: NOW)
        with running(sink) as recorded:
            send(sink, 1_000_000 + seed, 40)
            assert sink.status.n_looks == 5
        alarmed += bool(recorded)
    assert alarmed <= bound(n, rate)


def test_what_is_old_is_forgotten() -> None:
    now = [NOW]
    sink = DriftSink(baseline(1, 200), CRITERIA, Window(100, hours=1.0), clock=lambda: now[0])
    with running(sink):
        send(sink, 1, 80)
        assert sink.status.n_requests == 80
        now[0] += 3601
        rng = np.random.default_rng(5)
        for i in range(20):
            sink.write(answered(i, drawn(rng), time=now[0]))
        sink.settle()
        assert sink.status.n_requests == 20
        assert sink.status.rules[0].verdict is Verdict.INSUFFICIENT


def test_too_few_neither_fire_nor_resolve() -> None:
    sink = watch(criteria=Criteria(min_requests=100))
    with running(sink) as recorded:
        send(sink, 1, 80, shift=3.0)
        assert recorded == []
        assert sink.status.rules[0].verdict is Verdict.INSUFFICIENT
        send(sink, 2, 20, shift=3.0)
        assert {event.what for event in recorded} == {"drift"}


def test_what_cannot_be_compared_is_told_once() -> None:
    sink = watch()
    with running(sink) as recorded:
        send(sink, 1, 60, model="sha256:other")
        [event] = recorded
        assert (event.what, event.detail["message"]) == (
            "drift-refused",
            "the baseline is of another model",
        )
        assert sink.status.refused is not None
        assert sink.status.refused.startswith("the baseline is of another model")


def test_an_alarm_that_cannot_be_recorded_is_not_lost_silently() -> None:
    sink = watch()

    def fails(events: object) -> None:
        raise AuditError("the disk is gone")

    sink.start(fails)
    with pytest.raises(AuditError, match="the disk is gone"):
        send(sink, 1, 200, shift=3.0)
    sink.close()


def test_a_restart_goes_on_from_the_audit_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    sink = watch()
    sink.start(log.write)
    rng = np.random.default_rng(1)
    for i in range(150):
        events = answered(i, drawn(rng, 2.0), time=NOW)
        log.write(events)
        sink.write(events)
        sink.settle()
    before = sink.status
    sink.close()
    log.close()
    again = watch()
    again.restore(newest(LogFiles(tmp_path / "audit.jsonl"), 100))
    assert again.status.n_requests == 100
    assert [each.firing_since for each in again.status.rules] == [
        each.firing_since for each in before.rules
    ]
    with running(again) as recorded:
        send(again, 9, 20, shift=2.0)
        assert again.status.n_looks == 1
        assert [event for event in recorded if event.rule == "dense"] == []


def test_only_the_newest_segments_are_read(tmp_path: Path) -> None:
    from scope_runtime.audit import AuditOptions

    log = AuditLog(AuditOptions(tmp_path / "audit.jsonl", rotate_bytes=4000))
    for i in range(50):
        log.write(answered(i, {"w": (1, 1.0, 1.0)}))
    log.close()
    files = LogFiles(tmp_path / "audit.jsonl")
    assert len(files.segments()) > 5
    records = newest(files, 10)
    ids = [record["request_id"] for record in records if record["what"] == "summary"]
    assert 10 <= len(ids) < 30
    assert ids == [f"r{i}" for i in range(50 - len(ids), 50)]


@pytest.mark.parametrize(
    ("window", "criteria", "words"),
    [
        ({"requests": 19}, {}, "the window's requests are out of range; found 19"),
        ({"hours": 0}, {}, "hours must be positive"),
        ({"looks": 0}, {}, "looks is out of range"),
        ({"requests": 50}, {"min_requests": 60}, "never holds as many requests as min_requests"),
    ],
)
def test_a_window_has_its_bounds(
    window: dict[str, int], criteria: dict[str, int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        DriftSink(baseline(1, 30), Criteria(**criteria), Window(**window))
