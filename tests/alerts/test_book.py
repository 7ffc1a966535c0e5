"""The whole book by hand: broken receivers, restarts, files that cannot be written or read. The clock is ours."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.alerts.files import read_letters, read_state
from scope_runtime.alerts.options import AlertError, Receiver, Secret
from scope_runtime.alerts.send import Attempt, Verdict
from scope_runtime.errors import AuditError
from scope_runtime.events import Event
from tests.alerts.conftest import BROKEN, GONE, OK, START, Desk, ended, firing


def once(book: Any, request: str = "r1", **keys: Any) -> None:
    """A rule fires in a request that ends at once."""
    book.observe([firing(request, **keys), ended(request)])


def test_firing_and_resolved_are_told(desk: Desk) -> None:
    book = desk.open(window_s=60)
    once(book)
    desk.run(book, 200)
    assert [(at, body["status"]) for at, body in desk.tried] == [(0, "firing"), (60, "resolved")]
    assert [event.what for event in desk.records] == ["raised", "notified", "cleared", "notified"]
    assert desk.records[0].rule == "watch"
    assert desk.records[1].record()["answer"] == "200 OK"
    counts = book.counts()["desk"]
    assert (counts.made, counts.delivered, counts.failed, counts.waiting) == (2, 2, 0, 0)


def test_a_receiver_that_fails_for_a_minute_loses_nothing_and_hears_it_in_order(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN if desk.now < START + 60 else OK
    book = desk.open(window_s=10, group_interval_s=0)
    said: list[str] = []
    for second, rule in enumerate(["a", "b", "a", "c", "b", "d"]):
        desk.run(book, second * 9.0)
        once(book, f"r{second}", rule=rule)
    desk.run(book, 59)
    assert desk.got == []
    waiting = [body["groupKey"] for _, body in desk.tried]
    assert len(waiting) >= 4  # it was tried again and again, less and less often
    tries = [at for at, _ in desk.tried]
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    desk.run(book, 300)
    for body in desk.got:
        said += [f"{a['labels']['alertname']}:{a['status']}" for a in body["alerts"]]
    for rule, n in {"a": 2, "b": 2, "c": 1, "d": 1}.items():
        first_times = [each for each in said if each.startswith(rule)]
        assert first_times.count(f"{rule}:resolved") == n
        assert first_times[0] == f"{rule}:firing"
        assert first_times[-1] == f"{rule}:resolved"
    assert desk.got[-1]["status"] == "resolved"
    assert not desk.dead.exists()
    counts = book.counts()["desk"]
    assert (counts.delivered, counts.dead, counts.waiting) == (counts.made, 0, 0)


def test_behaviour_22_what_is_undelivered_survives_kill_and_restart(desk: Desk) -> None:
    """The first process is simply gone: nothing is closed but the lock that the kernel lets go of."""
    desk.answer = lambda body: BROKEN if desk.now < START + 60 else OK
    first = desk.open(window_s=600)
    once(first)
    desk.run(first, 20)
    first._filing._held.close()
    desk.now = START + 30
    second = desk.open(window_s=600)
    desk.run(second, 90)
    assert desk.said() == [("firing", ["watch:firing"])]
    made = {body["alerts"][0]["startsAt"] for _, body in desk.tried}
    assert len(made) == 1  # the one from before, not another
    assert [e.what for e in desk.records].count("raised") == 1


def test_behaviour_22_for_survives_a_restart(desk: Desk) -> None:
    """100 s of firing before, 250 s of downtime, 200 s after: the downtime is no pause, and does not count."""
    options = {"window_s": 60.0, "for_s": 300.0}
    first = desk.open(**options)
    for at in (0, 50, 100):
        desk.run(first, at)
        once(first, f"r{at}")
    first.close()
    desk.now = START + 350
    second = desk.open(**options)
    (alert,) = second.status()["alerts"]
    assert (alert["state"], alert["active_at"]) == ("pending", START + 250)
    for at in (400, 450, 500, 549):
        desk.run(second, at)
        once(second, f"r{at}")
        assert second.status()["alerts"][0]["state"] == "pending"
    desk.run(second, 550)
    once(second, "last")
    assert second.status()["alerts"][0]["state"] == "firing"
    desk.run(second, 551)
    assert desk.said() == [("firing", ["watch:firing"])]


def test_behaviour_22_keep_firing_for_survives_a_restart(desk: Desk) -> None:
    options = {"window_s": 10.0, "keep_firing_for_s": 300.0}
    first = desk.open(**options)
    once(first)
    desk.run(first, 100)
    first.close()
    desk.now = START + 1000
    second = desk.open(**options)
    desk.run(second, 1209)  # 100 s had gone before, 209 s now
    assert desk.said() == [("firing", ["watch:firing"])]  # and not told again
    desk.run(second, 1211)
    assert desk.said()[1:] == [("resolved", ["watch:resolved"])]
    assert desk.got[0]["alerts"][0]["startsAt"] == desk.got[1]["alerts"][0]["startsAt"]


def test_after_a_long_outage_what_was_pending_begins_anew(desk: Desk) -> None:
    first = desk.open(window_s=60, for_s=300)
    once(first)
    first.turn()
    first.close()
    desk.now += 7200
    assert desk.open(window_s=60, for_s=300).status()["alerts"] == []


def test_while_nothing_but_time_goes_by_the_state_is_kept_now_and_then(desk: Desk) -> None:
    """So that a kill does not make the time since the last firing look like downtime."""
    book = desk.open(window_s=3600)
    once(book)
    desk.run(book, 100)
    assert json.loads(desk.state.read_text())["saved_at"] >= START + 85


def test_what_is_refused_goes_to_the_dead_letters_at_once_and_the_next_is_tried(desk: Desk) -> None:
    desk.answer = lambda body: GONE if body["status"] == "firing" else OK
    book = desk.open(window_s=60)
    once(book)
    desk.run(book, 100)
    assert [body["status"] for body in desk.got] == ["resolved"]
    (letter,) = read_letters(desk.dead)
    assert (letter.receiver, letter.attempts, letter.error) == ("desk", 1, "404 Not Found")
    assert letter.body == desk.tried[0][1]
    assert desk.dead.stat().st_mode & 0o777 == 0o600
    failed = [e.what for e in desk.records if e.what not in ("raised", "cleared")]
    assert failed == ["notify-failed", "dead-letter", "notified"]


def test_what_is_too_old_goes_to_the_dead_letters(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open(window_s=1e6, max_age_s=1000, retry_max_s=100)
    once(book)
    desk.run(book, 1100)
    (letter,) = read_letters(desk.dead)
    assert 900 <= desk.tried[-1][0] <= 1000
    assert letter.error is not None
    assert letter.error.startswith("gave up: 500")
    assert book.counts()["desk"].dead == 1


def test_retry_after_is_kept(desk: Desk) -> None:
    desk.answer = lambda body: (
        OK if desk.now >= START + 130 else Attempt(Verdict.RETRY, 429, "429", retry_after_s=130.0)
    )
    book = desk.open()
    once(book)
    desk.run(book, 200)
    told = [(at, body["status"]) for at, body in desk.tried]
    assert told == [(0, "firing"), (130, "firing"), (130, "resolved")]


def test_a_full_queue_gives_up_the_oldest_never_the_newest(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open(queue=3, group_by=("alertname",), window_s=1e6)
    for n in range(6):
        once(book, f"r{n}", rule=f"rule-{n}")
        book.turn()
    letters = [each.body["groupLabels"]["alertname"] for each in read_letters(desk.dead)]
    assert letters == ["rule-0", "rule-1", "rule-2"]
    assert [each.error for each in read_letters(desk.dead)] == ["the queue was full"] * 3
    desk.answer = lambda body: OK
    desk.run(book, 1)
    said = [body["groupLabels"]["alertname"] for body in desk.got]
    assert said == ["rule-3", "rule-4", "rule-5"]


def test_a_damaged_state_is_told_put_aside_and_no_obstacle(desk: Desk) -> None:
    for n, damage in enumerate(['{"version": 1, "saved', '{"version": 2}', "[]", '{"version": 1}']):
        desk.state.write_text(damage)
        desk.now += 1
        book = desk.open()
        (kept,) = desk.folder.glob(f"*.damaged-{desk.now:.0f}")
        assert kept.read_text() == damage
        assert kept.name in book.status()["trouble"]
        assert [event.what for event in desk.records].count("state-lost") == n + 1
        once(book, f"r{n}")
        desk.do(book)
        assert kept.name in book.status()["trouble"]
        book.close()
    assert len(desk.got) == 4


def test_every_cut_of_the_state_file_is_noticed(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open()
    once(book)
    desk.do(book)
    book.close()
    whole = desk.state.read_bytes()
    assert read_state(desk.state) is not None
    for size in (*range(0, len(whole), 11), len(whole) - 1):
        desk.state.write_bytes(whole[:size])
        with pytest.raises(AlertError, match="the alerts' state is damaged"):
            read_state(desk.state)


def test_two_processes_do_not_share_a_state(desk: Desk) -> None:
    desk.open()
    with pytest.raises(AlertError, match="another process keeps its alerts there"):
        desk.open()


def test_a_disk_that_is_full_is_told_and_nothing_is_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.answer = lambda body: GONE
    book = desk.open(window_s=1e6)
    full = True

    def open_file(real: Any) -> Any:
        def checked(path: Any, *rest: Any, **keys: Any) -> int:
            if full and str(path).startswith(str(desk.folder)) and rest[0] & 0o100:
                raise OSError(28, "No space left on device")
            return int(real(path, *rest, **keys))

        return checked

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_file(os.open))
        once(book)
        desk.run(book, 100)
        assert "No space left on device" in book.status()["trouble"]
        full = False
        desk.run(book, 120)
    assert book.status()["trouble"] is None
    assert len(list(read_letters(desk.dead))) == 1


def test_a_log_that_takes_nothing_stops_no_notification(desk: Desk) -> None:
    book = desk.open()

    def refuses(events: list[Event]) -> None:
        raise AuditError("the audit log failed before")

    book.bind(refuses)
    once(book)
    desk.do(book)
    assert len(desk.got) == 1
    assert book.status()["unrecorded"] == 2
    assert "not on record: the audit log failed before" in book.status()["trouble"]


def test_a_fault_of_ours_is_raised_and_the_notification_stays(desk: Desk) -> None:
    def faulty(body: dict[str, Any]) -> Attempt:
        raise ZeroDivisionError

    desk.answer = faulty
    book = desk.open()
    once(book)
    book.turn()
    with pytest.raises(ZeroDivisionError):
        book.attempt("desk")
    desk.answer = lambda body: OK
    desk.run(book, 10)
    assert len(desk.got) == 1


def test_without_a_state_what_waits_at_the_end_is_a_dead_letter(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open(state=None, group_wait_s=30)
    once(book, rule="early")
    desk.run(book, 30)
    once(book, "r2", rule="late", policy="other")
    book.close()
    found = [
        (each.body["alerts"][0]["labels"]["alertname"], each.error)
        for each in read_letters(desk.dead)
    ]
    assert found == [("early", "the process ended"), ("late", "the process ended")]


def test_other_receivers_are_taken_up_while_it_runs(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open()
    once(book)
    desk.do(book)
    pager = Receiver("pager", "http://127.0.0.1:9/")
    book.configure(replace(book.options, receivers=(pager,), state=Path("elsewhere")))
    desk.answer = lambda body: OK
    desk.run(book, 5)
    assert [body["receiver"] for body in desk.got] == ["pager"]  # what fires now concerns it too
    assert [each.error for each in read_letters(desk.dead)] == ["the receiver was removed"]
    assert not Path("elsewhere").exists()
    lost = Receiver("lost", "http://127.0.0.1:9/", Secret(env="SCOPE_NOT_SET"))
    with pytest.raises(AlertError, match="no such variable"):
        book.configure(replace(book.options, receivers=(lost,)))
    assert book.receivers == {"pager"}


def test_letters_of_a_receiver_that_is_gone_after_a_restart(desk: Desk) -> None:
    desk.answer = lambda body: BROKEN
    book = desk.open()
    once(book)
    desk.do(book)
    book.close()
    desk.receivers = ()
    book = desk.open()
    book.turn()
    assert [each.receiver for each in read_letters(desk.dead)] == ["desk"]


def test_a_torn_dead_letter_is_left_out_and_others_stay_readable(desk: Desk) -> None:
    desk.answer = lambda body: GONE
    book = desk.open(group_interval_s=0.0)
    once(book, rule="a")
    desk.do(book)
    whole = desk.dead.read_bytes()
    desk.dead.write_bytes(whole + whole[: len(whole) // 2])
    desk.now += 10
    once(book, "r2", rule="b")
    desk.do(book)
    assert len(list(read_letters(desk.dead))) == 2
    desk.dead.write_bytes(whole + b'{"v": 1, "nonsense": {}}\n')
    with pytest.raises(AlertError, match=r"dead\.jsonl:2: not a dead letter"):
        list(read_letters(desk.dead))


def test_observing_touches_no_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token path: a thousand firings, and neither disk nor receiver is asked."""
    book = desk.open()

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a token waited for I/O")

    with monkeypatch.context() as patched:
        for name in ("open", "fsync", "replace"):
            patched.setattr(f"os.{name}", touched)
        for n in range(1000):
            once(book, f"r{n}")
    assert book.status()["alerts"][0]["n_firings"] == 1000
    assert desk.tried == []


def drift(what: str = "drift") -> Event:
    return firing(None, what=what, actions=())


def test_drift_fires_until_it_is_over_and_is_none_of_the_rules_own_alerts(desk: Desk) -> None:
    book = desk.open(window_s=60)
    book.observe([drift()])
    once(book)
    desk.run(book, 7200)
    assert desk.said() == [
        ("firing", ["drift:firing", "watch:firing"]),
        ("firing", ["watch:resolved", "drift:firing"]),
    ]
    (told,) = [a for a in desk.got[0]["alerts"] if a["labels"]["alertname"] == "drift"]
    assert told["labels"] == {
        "alertname": "drift",
        "policy": "tiny",
        "rule": "watch",
        "severity": "warning",
    }
    book.observe([drift("drift-resolved")])
    desk.run(book, 7300)
    assert desk.said()[-1] == ("resolved", ["drift:resolved"])
    assert book.status()["alerts"] == []


def test_drift_is_held_over_a_restart_by_who_says_so_again(desk: Desk) -> None:
    book = desk.open(window_s=60)
    book.observe([drift()])
    desk.run(book, 10)
    book.close()
    desk.now += 3600
    again = desk.open(window_s=60)
    again.observe([drift()])
    desk.run(again, 7200)
    assert desk.said() == [("firing", ["drift:firing"])]
    again.close()
    last = desk.open(window_s=60)
    desk.run(last, 7300)  # nobody watches drift any more
    assert desk.said()[-1] == ("resolved", ["drift:resolved"])


def test_drift_is_pending_as_long_as_any_alert(desk: Desk) -> None:
    book = desk.open(window_s=60, for_s=100)
    book.observe([drift()])
    desk.run(book, 200)
    assert [at for at, _ in desk.tried] == [100]


def test_drift_is_left_out_where_nobody_wants_it(desk: Desk) -> None:
    book = desk.open(drift=False)
    book.observe([drift()])
    desk.run(book, 10)
    assert desk.got == []


def test_a_firing_that_its_process_did_not_live_to_keep_is_taken_out_of_the_log(desk: Desk) -> None:
    """Behaviour 22 with a process that dies before its alerts' thread ever turns."""
    once(desk.open(), rule="earlier")
    desk.run(desk.books[0], 10)
    desk.books[0]._filing._held.close()  # as the kernel does with a dead process' lock
    crashed = desk.open()
    events = [
        replace(firing("r1", rule="earlier"), time=START),
        replace(firing("r2", labels={"tenant": "acme"}), time=START + 30),
        replace(firing("r3", what="resolved"), time=START + 31),
        replace(ended("r2"), time=START + 31),
    ]
    desk.now += 50
    crashed.catch_up([event.record() for event in events])
    # What was kept is not counted again.
    assert [alert["n_firings"] for alert in crashed.status()["alerts"]] == [1, 1]
    desk.run(crashed, 100)
    assert desk.said() == [
        ("firing", ["earlier:firing"]),
        ("firing", ["watch:firing", "earlier:firing"]),
    ]
    told = desk.got[1]["alerts"][0]
    assert told["annotations"]["request_id"] == "r2"
    assert told["annotations"]["summary"] == "watch of tiny fires"
    # Its request is over with its process.
    desk.run(crashed, 300)
    assert crashed.status()["alerts"] == []


def test_a_clock_that_is_put_back_between_processes_delays_nobody(desk: Desk) -> None:
    book = desk.open(window_s=60, group_interval_s=60)
    desk.answer = lambda body: BROKEN
    once(book)
    desk.run(book, 100)
    book.close()
    desk.now -= 86_400
    desk.answer = lambda body: OK
    put_back = desk.now
    again = desk.open(window_s=60, group_interval_s=60)
    once(again, rule="other")
    desk.run(again, desk.now - START + 400)
    assert [body["status"] for body in desk.got].count("firing") >= 1
    names = {a["labels"]["alertname"] for body in desk.got for a in body["alerts"]}
    assert names == {"watch", "other"}
    assert desk.now == put_back + 400
    assert again.status()["alerts"] == []


def test_a_request_without_an_answer_ends_too(desk: Desk) -> None:
    """Logits: what their rules did is the last that is said of them."""
    book = desk.open(window_s=60)
    book.observe([firing(), replace(ended(), what="rule", rule="watch")])
    desk.run(book, 200)
    assert [at for at, _ in desk.tried] == [0, 60]
