"""The threads: a token waits for nobody, time goes on by itself, an end keeps what is not delivered."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.alerts.manager import AlertManager
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.alerts.send import Attempt
from scope_runtime.events import Event
from tests.alerts.conftest import OK, ended, firing
from tests.lifecycle.conftest import until

Post = Callable[[Receiver, dict[str, Any], str, float], Attempt]


def options(tmp_path: Path, *names: str, **keys: Any) -> AlertOptions:
    receivers = tuple(Receiver(name, "http://127.0.0.1:9/") for name in names)
    given = {"group_wait_s": 0.0, "state": tmp_path / "a.json", "receivers": receivers}
    return AlertOptions(**{**given, **keys})


def test_alerts_are_told_and_end_by_themselves(tmp_path: Path) -> None:
    said: list[str] = []
    records: list[Event] = []

    def post(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        said.append(body["status"])
        return OK

    manager = AlertManager(
        options(tmp_path, "desk", window_s=0.05, group_interval_s=0.0), post=post
    )
    manager.bind(records.extend)
    manager.write([firing(), ended()])
    until(lambda: said == ["firing", "resolved"], "the receiver was told of both")
    manager.close()
    manager.close()
    assert [e.what for e in records].count("notified") == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("scope-alerts")]


def test_a_token_does_not_wait_for_a_receiver_nor_one_receiver_for_another(tmp_path: Path) -> None:
    stuck, go = threading.Event(), threading.Event()
    quick: list[str] = []

    def post(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        if receiver.name == "slow":
            stuck.set()
            go.wait()
        else:
            quick.extend(alert["labels"]["alertname"] for alert in body["alerts"])
        return OK

    manager = AlertManager(options(tmp_path, "slow", "quick", group_by=("alertname",)), post=post)
    try:
        manager.write([firing("r1", "first"), ended("r1")])
        assert stuck.wait(60)
        # While a delivery hangs, events are taken and others are told.
        manager.write([firing("r2", "second"), ended("r2")])
        until(lambda: sorted(quick) == ["first", "second"], "the other receiver was told")
        assert manager.counts()["slow"].waiting >= 1
    finally:
        go.set()
        manager.close()


def test_an_end_does_not_wait_for_a_receiver_that_hangs_and_the_next_start_tells_it(
    tmp_path: Path,
) -> None:
    stuck, go = threading.Event(), threading.Event()

    def hangs(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        stuck.set()
        go.wait()
        return OK

    first = AlertManager(options(tmp_path, "desk"), post=hangs, close_wait_s=0.0)
    first.write([firing()])
    assert stuck.wait(60)
    first.close()
    kept = json.loads((tmp_path / "a.json").read_text())
    assert [each["body"]["status"] for each in kept["waiting"]] == ["firing"]
    got: list[str] = []

    def post(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        got.append(id)
        return OK

    second = AlertManager(options(tmp_path, "desk"), post=post)
    until(lambda: bool(got), "what was under way is told by the next")
    second.close()
    assert got == [kept["waiting"][0]["id"]]
    before = (tmp_path / "a.json").read_bytes()
    go.set()
    for thread in first._threads.values():
        thread.join()
    assert (tmp_path / "a.json").read_bytes() == before  # the first writes there no more


def test_a_fault_of_ours_is_seen_and_does_not_end_the_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    calls = itertools.count()
    got: list[str] = []

    def post(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        if next(calls) == 0:
            raise ZeroDivisionError
        got.append(body["status"])
        return OK

    manager = AlertManager(options(tmp_path, "desk", retry_min_s=0.01), post=post)
    manager.write([firing()])
    until(lambda: got == ["firing"], "it was tried again")
    manager.close()
    assert seen == [ZeroDivisionError]


def test_receivers_come_and_go(tmp_path: Path) -> None:
    told: list[str] = []

    def post(receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        told.append(receiver.name)
        return OK

    manager = AlertManager(options(tmp_path, "old"), post=post)
    manager.write([firing()])
    until(lambda: told == ["old"], "the first is told")
    manager.configure(options(tmp_path, "new"))
    until(lambda: told == ["old", "new"], "the other is told of what fires")
    names = {thread.name for thread in threading.enumerate()}
    assert "scope-alerts-new" in names
    until(
        lambda: "scope-alerts-old" not in {t.name for t in threading.enumerate()},
        "the thread of the one that is gone ended",
    )
    manager.configure(options(tmp_path, "old"))
    until(lambda: told == ["old", "new", "old"], "it may come back")
    manager.close()
