"""What a report says: stable, small, drift, too little to say; and what it refuses to compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scope_runtime.drift import Criteria, DriftError, Verdict, compare
from scope_runtime.drift.measure import Collector, sample
from scope_runtime.errors import UsageError
from tests.support.drift_traffic import TIMES, answered, bound, drawn, requests, traffic

CRITERIA = Criteria(min_requests=50)


def test_a_shift_of_half_a_deviation_is_found() -> None:
    """200 requests against 200, two rules: at least 19 of 20 times (and see the false alarms below)."""
    found, n = 0, 20 * TIMES
    for seed in range(n):
        report = compare(traffic(seed, 200), traffic(1000 + seed, 200, shift=0.5), CRITERIA)
        found += report.verdict is Verdict.DRIFT
    assert 20 * found >= 19 * n


def test_a_seldom_feature_that_becomes_less_seldom_is_found() -> None:
    """From 2 % of requests to 10 %: the index hardly moves, the firing rate does."""
    found, below = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        samples = []
        for share in (0.02, 0.10):
            fires = rng.random(300) < share
            samples.append(
                sample(
                    requests(
                        [
                            answered(i, {"w": (4, 1, 9) if on else (0, 0, 0)})
                            for i, on in enumerate(fires)
                        ]
                    )
                )
            )
        [finding] = compare(*samples, CRITERIA).findings
        found += finding.verdict is Verdict.DRIFT
        below += (finding.psi or 0) < 0.25
    assert found >= 17
    assert below >= 17


def test_reports_name_a_rule_by_mistake_no_more_often_than_said() -> None:
    n, rate = 80 * TIMES, 0.05
    alarms = sum(
        compare(traffic(seed, 80), traffic(500_000 + seed, 60), Criteria(50, rate, psi=0)).verdict
        is Verdict.DRIFT
        for seed in range(n)
    )
    assert alarms <= bound(n, rate)
    assert alarms >= 1  # it uses up some of what it was given


def test_a_certain_but_small_difference_is_not_drift() -> None:
    report = compare(traffic(1, 1500), traffic(2, 1500, shift=0.2), CRITERIA)
    assert report.findings[0].verdict is Verdict.SMALL
    assert report.findings[0].p <= 0.01
    assert (
        compare(traffic(1, 1500), traffic(2, 1500, shift=0.2), Criteria(psi=0)).verdict == "drift"
    )


def test_too_few_requests_are_not_judged() -> None:
    report = compare(traffic(1, 200), traffic(2, 49, shift=3), CRITERIA)
    assert report.verdict is Verdict.INSUFFICIENT
    assert [f.measures for f in report.findings] == [(), ()]
    assert compare(traffic(1, 49), traffic(2, 200), CRITERIA).verdict is Verdict.INSUFFICIENT
    assert compare(traffic(1, 200), sample([]), CRITERIA).verdict is Verdict.INSUFFICIENT


def test_a_rule_that_few_requests_get_is_judged_by_those() -> None:
    rng = np.random.default_rng(3)

    def part(n: int, shift: float, offset: int) -> list[Any]:
        out = []
        for i in range(n):
            rules = drawn(rng, shift)
            if i % 3:
                del rules["seldom"]
            out.append(answered(offset + i, rules))
        return out

    base, window = (sample(requests(part(180, s, 0))) for s in (0.0, 0.0))
    report = compare(base, window, CRITERIA)
    assert [f.n_window for f in report.findings] == [180, 60]
    assert report.verdict is Verdict.STABLE
    report = compare(base, window, Criteria(min_requests=100))
    assert [str(f.verdict) for f in report.findings] == ["stable", "insufficient"]
    assert report.verdict is Verdict.INSUFFICIENT


def test_the_same_report_again() -> None:
    one, two = (compare(traffic(1, 100), traffic(2, 100), CRITERIA) for _ in range(2))
    assert [f.p for f in one.findings] == [f.p for f in two.findings]


OTHERS = {
    "model": ({"model": "sha256:other"}, "the baseline is of another model; found sha256:other"),
    "pack": (
        {"pack": "sha256:other"},
        "the baseline is of other feature packs; found sha256:other",
    ),
    "feature": (
        {"feature": "f (layer 1, id 3)"},
        "p/dense measures something else than in the baseline; found alert of f (layer 1, id 3) in "
        "mode audit; expected alert of f (layer 1, id 2) in mode audit. Make a new baseline",
    ),
    "mode": ({"mode": "enforce"}, "p/dense measures something else than in the baseline"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_measures_something_else_is_not_compared(what: str) -> None:
    options, words = OTHERS[what]
    with pytest.raises(DriftError) as refused:
        compare(traffic(1, 60), traffic(2, 60, **options), CRITERIA)
    assert words in str(refused.value)


def test_another_revision_and_another_rule_are_told() -> None:
    window = sample(
        requests(
            [
                answered(i, {"dense": (1, i, i), "new": (1, 1, 1)}, revision="sha256:2")
                for i in range(60)
            ]
        )
    )
    report = compare(traffic(1, 60), window, CRITERIA)
    assert "the policies' revision is not the baseline's" in report.notes[0]
    assert report.notes[1] == "not in the baseline: p/new"


def test_records_become_requests() -> None:
    """Two revisions in one request are one measurement; what is not measured or never ends is none."""
    collector = Collector({"tenant": "a"})
    taken_up = {"kind": "policy", "what": "swapped", "name": "lone", "revision": "sha256:revision"}
    assert collector.add(taken_up) is None
    events = answered(1, {"w": (10, 1.0, 5.0)}, labels={"tenant": "a"}, policy=None)
    again = answered(
        1, {"w": (30, 3.0, 4.0)}, labels={"tenant": "a"}, policy=None, revision="sha256:revision"
    )
    unmeasured = events[0].record() | {"rule": "push", "activation": {"mean": None, "max": None}}
    records = [events[0].record(), again[0].record(), unmeasured, {"kind": "request"}]
    assert [collector.add(record) for record in records] == [None] * 4
    request = collector.add(events[1].record())
    assert request is not None
    [(rule, values)] = request.measured.items()
    assert rule.name == "lone/w"
    assert values == (40 / 100, 2.0, 5.0)
    assert collector.add(events[1].record()) is None
    assert requests([answered(1, {"w": (1, 1, 1)}, labels={"tenant": "b"})], {"tenant": "a"}) == []
    for n in range(5000):
        collector.add(answered(n, {"w": (1, 1, 1)})[0].record())
    assert collector.n_forgotten == 5000 - 4096


def test_a_rule_without_its_policys_name_is_the_one_with_it() -> None:
    report = compare(traffic(1, 60, policy=None), traffic(2, 60), CRITERIA)
    assert [f.n_window for f in report.findings] == [60, 60]
    assert report.notes == ()


def test_a_sample_is_of_one_model_and_one_meaning() -> None:
    def two(**options: str) -> list[Any]:
        return [answered(1, {"w": (1, 1, 1)}), answered(2, {"w": (1, 1, 1)}, **options)]

    with pytest.raises(DriftError, match="the requests are of several models"):
        sample(requests(two(model="sha256:other")))
    with pytest.raises(DriftError, match="what p/w measures changed among the requests"):
        sample(requests(two(mode="enforce")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_requests": 19}, "min_requests is too small; found 19"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate is out of range"),
        ({"false_alarm_rate": float("nan")}, "false_alarm_rate is out of range; found nan"),
        ({"psi": -1}, "psi is out of range"),
    ],
)
def test_criteria_have_their_bounds(options: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Criteria(**options)
