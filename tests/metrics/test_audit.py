"""The audit log's health, as its metrics tell it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from scope_runtime.audit import AuditLog, AuditOptions, OnFailure
from scope_runtime.errors import AuditError
from scope_runtime.metrics import Metrics
from scope_runtime.metrics.collect import audit_reader
from tests.support.audit_logs import event


def told(registry: CollectorRegistry) -> dict[str, float]:
    names = ("records_total", "dropped_total", "queued", "lag_seconds", "failing", "failed")
    return {name: registry.get_sample_value(f"scope_audit_{name}") or 0.0 for name in names}


def test_lag_is_how_long_the_oldest_event_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, metrics = AuditLog(tmp_path / "log.jsonl"), Metrics()
    metrics.read(audit_reader(log))
    log.write([event(0), event(1)])
    quiet = dict.fromkeys(told(metrics.registry), 0.0) | {"records_total": 2}
    assert told(metrics.registry) == quiet
    fsync, begun, free = os.fsync, threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        begun.set()
        assert free.wait(30)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    writer = threading.Thread(target=log.write, args=([event(2)],))
    writer.start()
    assert begun.wait(30)
    first, second = told(metrics.registry), told(metrics.registry)
    assert (first["queued"], first["records_total"]) == (1, 2)
    assert 0 < first["lag_seconds"] < second["lag_seconds"]
    free.set()
    writer.join()
    monkeypatch.undo()
    assert told(metrics.registry) == {**quiet, "records_total": 3}
    log.close()


@pytest.mark.parametrize("on_failure", [OnFailure.STOP, OnFailure.DROP])
def test_a_failed_fsync_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_failure: OnFailure
) -> None:
    options = AuditOptions(tmp_path / "log.jsonl", on_failure=on_failure)
    log = AuditLog(options, clock=lambda: 1234.5)
    metrics = Metrics()
    metrics.read(audit_reader(log))
    log.write([event(0)])

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    if on_failure is OnFailure.STOP:
        with pytest.raises(AuditError):
            log.write([event(1)])
    else:
        log.write([event(1), event(2)])
    now = told(metrics.registry)
    assert (now["failing"], now["failed"], now["records_total"]) == (1, 1, 1)
    since = "scope_audit_failing_since_timestamp_seconds"
    assert metrics.registry.get_sample_value(since) == 1234.5
    assert now["dropped_total"] == (2 if on_failure is OnFailure.DROP else 0)
    monkeypatch.undo()
    log.close()
