"""Pending, firing, resolved over requests; the same by a model that looks at every second."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from scope_runtime.alerts.options import AlertOptions
from scope_runtime.alerts.states import LONGEST_REQUEST_S, AlertStates, State
from tests.alerts.conftest import ended, firing, resting


def standing(states: AlertStates) -> list[tuple[str, float]]:
    return [(str(alert.state), alert.starts_at) for alert in states]


def test_a_rule_that_fires_once_fires_until_it_has_been_quiet_for_the_window() -> None:
    states = AlertStates(AlertOptions(window_s=60))
    states.observe(firing(), 100.0)
    states.observe(ended(), 110.0)
    states.advance(169.9)
    assert standing(states) == [("firing", 100.0)]
    assert states.next_due(169.9) == 170.0
    states.advance(175.0)
    assert standing(states) == []
    (over,) = states.take_ended()
    assert (over.state, over.starts_at, over.ends_at) == (State.RESOLVED, 100.0, 170.0)
    assert states.take_ended() == []


def test_for_needs_firings_that_go_on_so_long_with_no_longer_pause_than_the_window() -> None:
    states = AlertStates(AlertOptions(window_s=60, for_s=100))
    for at in (0.0, 50.0, 99.0):
        states.observe(firing(f"r{at}"), at)
        states.observe(ended(f"r{at}"), at)
        assert standing(states) == [("pending", 0.0)]
    states.observe(firing("last"), 100.0)
    assert standing(states) == [("firing", 100.0)]


def test_a_longer_pause_begins_for_anew() -> None:
    states = AlertStates(AlertOptions(window_s=60, for_s=100))
    states.observe(firing("a"), 0.0)
    states.observe(ended("a"), 0.0)
    states.advance(60.0)
    assert standing(states) == []
    assert states.take_ended() == []  # what never fired is not resolved either
    states.observe(firing("b"), 101.0)
    assert standing(states) == [("pending", 101.0)]


def test_one_long_request_fires_by_time_alone() -> None:
    states = AlertStates(AlertOptions(window_s=60, for_s=100))
    states.observe(firing(), 0.0)
    assert states.next_due(1.0) == 100.0
    states.advance(100.0)
    assert standing(states) == [("firing", 100.0)]


def test_keep_firing_for_counts_from_the_end_of_the_window() -> None:
    states = AlertStates(AlertOptions(window_s=60, keep_firing_for_s=300))
    states.observe(firing("a"), 0.0)
    states.observe(ended("a"), 0.0)
    states.observe(firing("b"), 350.0)  # while it is kept firing: the same alert
    states.observe(ended("b"), 350.0)
    states.advance(709.0)
    assert standing(states) == [("firing", 0.0)]
    states.advance(710.0)
    assert [alert.ends_at for alert in states.take_ended()] == [710.0]


def test_a_rule_that_rests_in_one_request_and_fires_in_another_goes_on() -> None:
    states = AlertStates(AlertOptions(window_s=10))
    states.observe(firing("a"), 0.0)
    states.observe(firing("b"), 1.0)
    states.observe(resting("a"), 2.0)
    states.advance(500.0)
    assert standing(states) == [("firing", 0.0)]
    states.observe(ended("b"), 501.0)
    states.advance(511.0)
    assert [alert.ends_at for alert in states.take_ended()] == [511.0]


def test_a_request_whose_end_nobody_reports_does_not_fire_for_ever() -> None:
    states = AlertStates(AlertOptions(window_s=10))
    states.observe(firing(), 0.0)
    states.advance(LONGEST_REQUEST_S)
    assert len(standing(states)) == 1
    states.advance(LONGEST_REQUEST_S + 11)
    assert standing(states) == []


def test_identity_is_policy_rule_severity_and_the_allowed_labels() -> None:
    states = AlertStates(
        AlertOptions(request_labels=("tenant",), external_labels={"instance": "gpu-1"})
    )
    for n, (rule, tenant) in enumerate(
        [("watch", "acme"), ("watch", "globex"), ("watch", "acme"), ("other", "acme")]
    ):
        labels = {"tenant": tenant, "user": f"person-{n}"}
        states.observe(firing(f"r{n}", rule, labels=labels), 0.0)
    assert [dict(labels) for labels in states.alerts] == [
        {
            "alertname": rule,
            "instance": "gpu-1",
            "policy": "tiny",
            "severity": "warning",
            "tenant": tenant,
        }
        for rule, tenant in [("watch", "acme"), ("watch", "globex"), ("other", "acme")]
    ]
    assert [alert.n_firings for alert in states] == [2, 1, 1]


def test_too_many_label_values_become_one_alert() -> None:
    states = AlertStates(AlertOptions(request_labels=("tenant",), max_alerts=3))
    for n in range(50):
        states.observe(firing(f"r{n}", labels={"tenant": f"t{n}"}), 0.0)
    assert [alert.label.get("tenant") for alert in states] == ["t0", "t1", "t2", None]
    assert states.n_folded == 47


def test_the_dose_limit_is_an_alert_unless_told_otherwise() -> None:
    for wanted in (True, False):
        states = AlertStates(AlertOptions(dose_excess=wanted))
        states.observe(firing(rule=None, actions=(), what="dose-excess"), 0.0)  # type: ignore[arg-type]
        names = [alert.label["alertname"] for alert in states]
        assert names == (["dose-excess"] if wanted else [])


def test_nothing_else_is_an_alert() -> None:
    """Above all not what we put on record ourselves."""
    states = AlertStates(AlertOptions())
    for what in ("raised", "cleared", "notified", "notify-failed", "dead-letter", "state-lost"):
        assert not states.observe(firing(what=what), 0.0)
    assert not states.observe(ended(), 0.0)
    assert not list(states)


# -- by a model that knows nothing of due times: it looks at every second


@dataclass
class Model:
    window: int
    for_: int
    keep: int
    open: set[str] = field(default_factory=set)
    seen: int | None = None  # the last second at which some request was firing
    began: int = 0
    state: str = "inactive"
    log: list[tuple[int, str]] = field(default_factory=list)

    def second(self, now: int, events: list[tuple[str, str]]) -> None:
        over = (
            self.window + (self.keep if self.state == "firing" else 0)
            if self.seen is not None
            else 0
        )
        if self.open:
            self._see(now)
        elif self.state != "inactive" and self.seen is not None and now - self.seen >= over:
            if self.state == "firing":
                self.log.append((self.seen + over, "resolved"))
            self.state = "inactive"
        for what, request in events:
            if what == "firing":
                self.open.add(request)
                self._see(now)
            elif request in self.open:
                self.open.discard(request)
                self._see(now)

    def _see(self, now: int) -> None:
        if self.state == "inactive":
            self.state, self.began = "pending", now
        elif self.seen is not None and now - self.seen > self.window:
            self.began = now
        self.seen = now
        if self.state == "pending" and now - self.began >= self.for_:
            self.state = "firing"
            self.log.append((now, "firing"))


STEP = st.tuples(
    st.integers(0, 40),
    st.sampled_from(["firing", "resolved", "summary"]),
    st.sampled_from(["a", "b", "c"]),
)


@settings(max_examples=300)
@given(
    st.lists(STEP, max_size=25),
    st.integers(1, 20),
    st.sampled_from([0, 1, 15, 45]),
    st.sampled_from([0, 1, 30]),
    st.booleans(),
)
def test_as_a_model_that_looks_at_every_second(
    steps: list[tuple[int, str, str]], window: int, for_: int, keep: int, looks: bool
) -> None:
    """Also when time is looked at only where something happens, or at due times alone."""
    options = AlertOptions(window_s=window, for_s=for_, keep_firing_for_s=keep)
    states, model = AlertStates(options), Model(window, for_, keep)
    make = {"firing": firing, "resolved": resting, "summary": ended}
    found: list[tuple[int, str]] = []
    was_firing = False

    def look() -> None:
        nonlocal was_firing
        for alert in states.take_ended():
            assert alert.ends_at is not None
            if not was_firing:
                found.append((int(alert.starts_at), "firing"))
            found.append((int(alert.ends_at), "resolved"))
            was_firing = False
        now_firing = [alert for alert in states if alert.state is State.FIRING]
        if now_firing and not was_firing:
            found.append((int(now_firing[0].starts_at), "firing"))
        was_firing = bool(now_firing)

    at, last = 0, 0
    by_second: dict[int, list[tuple[str, str]]] = {}
    for gap, what, request in steps:
        at += gap
        by_second.setdefault(at, []).append((what, request))
    end = at + window + keep + for_ + 5
    for now in range(end + 1):
        events = by_second.get(now, [])
        model.second(now, events)
        due = states.next_due(float(last))
        if events or looks or (due is not None and due <= now) or now == end:
            states.advance(float(now))
            for what, request in events:
                states.observe(make[what](request), float(now))
            look()
        last = now
    assert found == model.log
