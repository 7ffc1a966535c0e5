"""Events become counts: each kind where it belongs, bounded whatever the labels are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from scope_runtime.events import Event, Kind
from scope_runtime.metrics import MetricsSink


class Counted:
    """A sink with a registry that can be asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sink = MetricsSink(self.registry)

    def write(self, *events: Event) -> None:
        self.sink.write(events)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def series(self, name: str) -> int:
        return sum(s.name == name for m in self.registry.collect() for s in m.samples)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def rule(name: str = "quiet", *, mode: str = "enforce", op: str = "mute", **more: Any) -> Event:
    detail: dict[str, Any] = {
        "policy": "p",
        "n_tokens": 10,
        "n_fired": 4,
        "n_limited": 1,
        "activation": {"max": 3.0, "mean": 0.5},
        "dose": {"max": 0.25, "mean": 0.1},
    }
    return Event(Kind.REQUEST, "rule", 1.0, rule=name, op=op, mode=mode, detail=detail | more)


def summary(request_id: str = "r1", **more: Any) -> Event:
    detail: dict[str, Any] = {
        "n_prompt": 7,
        "n_answer": 3,
        "n_reused": 2,
        "finish_reason": "length",
        "timing": {"queue_s": 0.5, "prompt_s": 0.25, "generation_s": 0.06, "duration_s": 0.9},
    }
    return Event(Kind.REQUEST, "summary", 1.0, request_id=request_id, detail=detail | more)


def alert(what: str, request_id: str | None = "r1", **more: Any) -> Event:
    detail = {"policy": "p", "severity": "warning", "activation": {"max": 9.0}, **more}
    return Event(Kind.ALERT, what, 1.0, request_id=request_id, rule="watch", detail=detail)


def policy(what: str, time: float, **detail: Any) -> Event:
    return Event(Kind.POLICY, what, time, detail=detail)


WATCH = {"policy": "p", "rule": "watch", "severity": "warning"}


def test_a_rule_is_counted_by_policy_rule_op_and_mode(counted: Counted) -> None:
    counted.write(rule(), rule(), rule(mode="audit"))
    enforced = {"policy": "p", "rule": "quiet", "op": "mute", "mode": "enforce"}
    assert counted("scope_interventions_total", **enforced) == 8
    assert counted("scope_interventions_limited_total", **enforced) == 2
    assert counted("scope_rule_tokens_total", **enforced) == 20
    assert counted("scope_interventions_total", **{**enforced, "mode": "audit"}) == 4


def test_doses_and_activations_are_each_requests_highest(counted: Counted) -> None:
    counted.write(rule(), rule(n_fired=0, dose={"max": 0.0, "mean": 0.0}))
    dose = {"policy": "p", "rule": "quiet", "mode": "enforce"}
    assert counted("scope_rule_dose_bucket", **dose, le="0.2") == 0
    assert counted("scope_rule_dose_bucket", **dose, le="0.3") == 1
    assert counted("scope_rule_dose_count", **dose) == 1, "a rule that did not act had no dose"
    name = {"policy": "p", "rule": "quiet"}
    assert counted("scope_rule_activation_bucket", **name, le="2.5") == 0
    assert counted("scope_rule_activation_bucket", **name, le="5.0") == 2


def test_what_was_never_active_has_a_bucket_of_its_own(counted: Counted) -> None:
    counted.write(rule(activation={"max": 0.0, "mean": 0.0}))
    assert counted("scope_rule_activation_bucket", policy="p", rule="quiet", le="0.0") == 1


def test_what_was_not_measured_is_not_observed(counted: Counted) -> None:
    counted.write(rule(activation={"max": None, "mean": None}, dose={"max": None, "mean": None}))
    counted.write(rule("watch", op="alert"))
    assert counted("scope_rule_activation_count", policy="p", rule="quiet") is None
    assert counted("scope_rule_dose_count", policy="p", rule="quiet", mode="enforce") is None
    assert counted.series("scope_rule_dose_count") == 0, "an alert pushes nothing"


def test_tokens_and_times_mean_what_llama_servers_mean(counted: Counted) -> None:
    """Prompt tokens are those computed; the times are split where the first answer token is."""
    counted.write(summary())
    assert counted("scope_requests_total", finish_reason="length") == 1
    assert counted("scope_prompt_tokens_total") == 5
    assert counted("scope_prompt_tokens_reused_total") == 2
    assert counted("scope_tokens_predicted_total") == 3
    assert counted("scope_prompt_seconds_total") == 0.25
    assert counted("scope_tokens_predicted_seconds_total") == 0.06
    assert counted("scope_time_to_first_token_seconds_sum") == 0.75
    assert counted("scope_time_per_output_token_seconds_sum") == pytest.approx(0.03)
    assert counted("scope_request_duration_seconds_sum") == 0.9


@pytest.mark.parametrize(("n_answer", "first", "later"), [(0, 0, 0), (1, 1, 0), (2, 1, 1)])
def test_a_time_that_there_was_not_is_not_observed(
    counted: Counted, n_answer: int, first: int, later: int
) -> None:
    counted.write(summary(n_answer=n_answer))
    assert counted("scope_time_to_first_token_seconds_count") == first
    assert counted("scope_time_per_output_token_seconds_count") == later


def test_behaviour_20_exceptions_are_counted_apart(counted: Counted) -> None:
    left_out = {"p/quiet": "exception", "p/push": "rollout", "q/all": "selector"}
    counted.write(summary(exempted=["p/quiet"], left_out=left_out), summary())
    assert counted("scope_exceptions_used_total", policy="p", rule="quiet") == 1
    assert counted.series("scope_exceptions_used_total") == 1
    for path, why in left_out.items():
        name, rule_name = path.split("/")
        assert counted("scope_rules_left_out_total", policy=name, rule=rule_name, why=why) == 1


def test_an_alert_fires_until_it_is_resolved_or_its_request_ends(counted: Counted) -> None:
    counted.write(alert("firing"), alert("firing", "r2"))
    assert counted("scope_alert_firing", **WATCH) == 2
    counted.write(alert("resolved", "r2"))
    assert counted("scope_alert_firing", **WATCH) == 1
    counted.write(summary("r1"), summary("r2"))
    assert counted("scope_alert_firing", **WATCH) == 0
    assert counted("scope_alert_transitions_total", **WATCH, to="firing") == 2
    assert counted("scope_alert_transitions_total", **WATCH, to="resolved") == 1


def test_the_dose_limit_is_counted_per_request(counted: Counted) -> None:
    counted.write(Event(Kind.ALERT, "dose-excess", 1.0, request_id="r1", detail={}))
    assert counted("scope_dose_excess_requests_total") == 1


def test_one_revision_is_in_force_since_it_was_taken_up(counted: Counted) -> None:
    counted.write(policy("swapped", 5.0, revision="sha256:a"))
    counted.write(policy("swapped", 9.0, revision="sha256:b"))
    counted.write(policy("refused", 11.0), policy("loaded", 12.0, revision="sha256:c"))
    assert counted("scope_revision_info", revision="sha256:b") == 1
    assert counted.series("scope_revision_info") == 1
    assert counted("scope_revision_timestamp_seconds") == 9.0
    counted.write(policy("off", 13.0, revision="none"))
    assert counted("scope_revision_info", revision="none") == 1
    assert counted("scope_policy_events_total", what="swapped") == 2
    assert counted("scope_policy_events_total", what="refused") == 1


def test_rules_without_end_do_not_make_series_without_end(counted: Counted) -> None:
    """Ids and a request's labels never become labels; and rules, in time, are only so many."""
    for n in range(1500):
        counted.write(rule(f"rule-{n}"), alert("firing", f"r{n}"), summary(f"r{n}"))
    other = {"policy": "(other)", "rule": "(other)", "op": "mute", "mode": "enforce"}
    # The alert is one of the thousand that have a name.
    assert counted.series("scope_interventions_total") == 999 + 1
    assert counted("scope_interventions_total", **other) == (1500 - 999) * 4
    assert counted.series("scope_alert_firing") == 1
    assert counted("scope_alert_firing", **WATCH) == 0


def test_an_alert_ends_with_a_request_that_has_no_answer(counted: Counted) -> None:
    """Logits are computed under the rules too, and have no summary."""
    counted.write(alert("firing"))
    counted.write(replace(rule("watch", op="alert"), request_id="r1"))
    assert counted("scope_alert_firing", **WATCH) == 0
