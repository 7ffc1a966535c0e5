"""Who is told what, when: grouping, intervals, repetition and rate limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scope_runtime.alerts.groups import Group, Groups
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.alerts.states import Alert, State

DESK = Receiver("desk", "http://127.0.0.1/")


def alert(
    name: str,
    state: State = State.FIRING,
    *,
    policy: str = "p",
    severity: str = "warning",
    at: float = 0.0,
) -> Alert:
    labels = (("alertname", name), ("policy", policy), ("severity", severity))
    ends = at + 1 if state is State.RESOLVED else None
    return Alert(labels, state, {"summary": name}, at, at, at, ends, True, 1)


def resolved(name: str, at: float = 0.0) -> Alert:
    return alert(name, State.RESOLVED, at=at)


def groups(**options: Any) -> Groups:
    given = {
        "group_wait_s": 5,
        "group_interval_s": 60,
        "repeat_interval_s": 600,
        "receivers": (DESK,),
    }
    return Groups(AlertOptions(**{**given, **options}))


def names(bodies: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [f"{a['labels']['alertname']}:{a['status']}" for a in body["alerts"]] for body in bodies
    ]


def test_what_comes_in_the_wait_shares_a_notification_and_later_news_waits_for_the_interval() -> (
    None
):
    some = groups()
    some.update([alert("a")], 0.0)
    assert some.flush(4.9) == []
    some.update([alert("b")], 4.9)
    assert some.next_due(4.9) == 5.0
    assert names(some.flush(5.0)) == [["a:firing", "b:firing"]]
    some.update([alert("c"), resolved("a")], 10.0)
    assert some.next_due(10.0) == 65.0
    assert some.flush(64.9) == []
    assert names(some.flush(65.0)) == [["a:resolved", "c:firing", "b:firing"]]
    assert some.next_due(66.0) == 665.0  # nothing new: repeated
    assert names(some.flush(665.0)) == [["b:firing", "c:firing"]]


def test_groups_are_told_apart_by_their_labels_and_receivers_get_what_they_want() -> None:
    pager = Receiver("pager", "http://127.0.0.1/", severities=frozenset({"critical"}))
    other = Receiver("other", "http://127.0.0.1/", policies=frozenset({"q"}))
    some = groups(receivers=(DESK, pager, other), group_wait_s=0)
    some.update([alert("a"), alert("b", severity="critical"), alert("c", policy="q")], 0.0)
    found = {
        (body["receiver"], body["groupLabels"]["policy"]): names([body])[0]
        for body in some.flush(0.0)
    }
    assert found == {
        ("desk", "p"): ["a:firing", "b:firing"],
        ("desk", "q"): ["c:firing"],
        ("pager", "p"): ["b:firing"],
        ("other", "q"): ["c:firing"],
    }


def test_what_no_policy_asks_to_be_told_is_not() -> None:
    some = groups()
    some.update([replace(alert("a"), webhook=False), replace(alert("b"), state=State.PENDING)], 0.0)
    assert some.next_due(0.0) is None


def test_what_fired_and_ended_before_anybody_was_told_is_told_all_the_same() -> None:
    some = groups()
    some.update([alert("a")], 0.0)
    some.update([resolved("a")], 1.0)
    some.update([resolved("b")], 1.0)
    assert names(some.flush(5.0)) == [["a:resolved", "b:resolved"]]
    assert some.next_due(5.0) is None
    assert not some.groups


def test_a_receiver_that_does_not_want_ends_is_not_told_of_them() -> None:
    some = groups(receivers=(replace(DESK, send_resolved=False),))
    some.update([alert("a")], 0.0)
    assert names(some.flush(5.0)) == [["a:firing"]]
    some.update([resolved("a")], 70.0)
    assert some.next_due(70.0) is None


def test_an_alert_that_is_back_before_its_end_was_told_is_news() -> None:
    some = groups()
    some.update([alert("a")], 0.0)
    some.flush(5.0)
    some.update([resolved("a")], 10.0)
    some.update([alert("a", at=20.0)], 20.0)
    (body,) = some.flush(65.0)
    assert names([body]) == [["a:firing"]]
    assert body["alerts"][0]["startsAt"] == "1970-01-01T00:00:20.000000Z"


def test_what_does_not_fit_is_counted_and_news_goes_first() -> None:
    some = groups(receivers=(replace(DESK, max_alerts=2),))
    some.update([alert("a"), alert("b"), alert("c")], 0.0)
    (body,) = some.flush(5.0)
    assert (names([body])[0], body["truncatedAlerts"]) == (["a:firing", "b:firing"], 1)
    (body,) = some.flush(65.0)  # the one that was cut is still news
    assert (names([body])[0], body["truncatedAlerts"]) == (["c:firing", "a:firing"], 1)


def test_groups_survive_as_data() -> None:
    some = groups()
    some.update([alert("a"), resolved("b")], 0.0)
    (group,) = some.groups.values()
    assert Group.of(group.data()) == group
    some.flush(5.0)
    assert Group.of(group.data()) == group


CHANGE = st.tuples(
    st.floats(0, 30),
    st.sampled_from("abcdefgh"),
    st.sampled_from("pq"),
    st.sampled_from([State.FIRING, State.RESOLVED]),
)


@settings(max_examples=200)
@given(
    st.lists(CHANGE, max_size=40),
    st.integers(1, 4),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([0.0, 20.0]),
    st.integers(0, 3),
)
def test_no_minute_has_more_than_the_limit_and_in_the_end_everything_is_told(
    changes: list[tuple[float, str, str, State]],
    limit: int,
    wait: float,
    interval: float,
    max_alerts: int,
) -> None:
    receiver = replace(DESK, max_per_minute=limit, max_alerts=max_alerts)
    some = groups(
        receivers=(receiver,), group_wait_s=wait, group_interval_s=interval, repeat_interval_s=1e9
    )
    now = 0.0
    stands: dict[tuple[str, str], State] = {}
    told: dict[tuple[str, str], State] = {}
    made: list[float] = []

    def flush() -> None:
        for body in some.flush(now):
            made.append(now)
            assert body["alerts"]
            for each in body["alerts"]:
                assert each["labels"]["policy"] == body["groupLabels"]["policy"]
                key = (each["labels"]["alertname"], each["labels"]["policy"])
                told[key] = State(each["status"])

    for gap, name, policy, state in changes:
        now += gap
        key = (name, policy)
        if state is State.RESOLVED and stands.get(key) is not State.FIRING:
            continue
        stands[key] = state
        some.update([alert(name, state, policy=policy, at=now)], now)
        flush()
    for _ in range(1000):
        due = some.next_due(now)
        if due is None or due > 1e8:
            break
        now = max(due, now)
        flush()
    assert told == stands
    assert made == sorted(made)
    for first, after in zip(made, made[limit:], strict=False):
        # 60 s later a place is free; adding and taking away 60 is not exact in floats.
        assert after - first >= 60 - 1e-6
