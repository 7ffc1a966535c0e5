"""The baseline's file: what is written is read back, and whatever is wrong with it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scope_runtime.drift import (
    Baseline,
    Criteria,
    DriftError,
    Verdict,
    compare,
    read_baseline,
    write_baseline,
)
from scope_runtime.drift.baseline import thinned
from scope_runtime.drift.measure import Sample, sample
from tests.support.drift_traffic import answered, baseline, requests, traffic


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rules = [{"w": (1, 0.25, 3.5)}, {"w": (0, -1.5, 2.0), "other": (2, 0.5, 0.5)}]
    made = sample(requests([answered(i, each) for i, each in enumerate(rules)]))
    write_baseline(tmp_path / "b.json", Baseline(made, "log", {"tenant": "a"}))
    read = read_baseline(tmp_path / "b.json")
    assert (read.source, read.labels) == ("log", {"tenant": "a"})
    assert read.sample.times.tolist() == [1000.0, 1001.0]
    assert list(read.sample.measured) == list(made.measured)
    for rule, values in made.measured.items():
        np.testing.assert_array_equal(read.sample.measured[rule], values)
    assert (read.sample.model, read.sample.packs) == (made.model, made.packs)
    before = (tmp_path / "b.json").read_bytes()
    write_baseline(tmp_path / "b.json", read)
    assert (tmp_path / "b.json").read_bytes() == before


def test_shares_that_have_no_end_are_the_same_numbers_in_file_and_traffic(tmp_path: Path) -> None:
    """Answers of 26 tokens each: thirds of nothing apart in the last digit would lie in bins of their own."""

    def some(seed: int) -> Sample:
        fired = np.random.default_rng(seed).binomial(26, 0.15, size=150)
        events = [answered(i, {"w": (n, n / 7, n / 3)}, n_tokens=26) for i, n in enumerate(fired)]
        return sample(requests(events))

    write_baseline(tmp_path / "b.json", Baseline(some(1), "log", {}))
    read = read_baseline(tmp_path / "b.json").sample
    [(rule, values)] = read.measured.items()
    np.testing.assert_array_equal(values, some(1).measured[rule])
    [finding] = compare(read, some(2), Criteria()).findings
    assert finding.verdict is Verdict.STABLE
    assert finding.psi is not None
    assert finding.psi < 0.1


def test_many_requests_are_thinned_evenly() -> None:
    whole = traffic(1, 100)
    part = thinned(whole, 30)
    assert len(part.times) == 30
    assert np.diff(part.times).max() <= 4
    assert thinned(whole, 100) is whole


def test_nothing_measured_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match="no request in which a feature was measured"):
        write_baseline(tmp_path / "b.json", Baseline(sample([]), "log", {}))
    assert list(tmp_path.iterdir()) == []


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree.pop(key)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree.update({key: value})


def rule(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree["rules"][0].update({key: value})


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "kind": (put("kind", "x"), 'no baseline; expected "kind": "scope-drift-baseline"'),
    "version": (put("version", 2), "a baseline of another version; found 2; expected 1"),
    "a key less": (drop("times"), "missing key 'times'"),
    "a key more": (put("extra", 1), "unknown key 'extra'"),
    "no times": (put("times", []), "an absurd number of requests (at times); found 0"),
    "times": (put("times", [1.0, "x"]), "no list of numbers (at times)"),
    "labels": (put("labels", {"a": 1}), "no mapping of texts (at labels)"),
    "model": (put("model", 1), "no text (at model); found 1"),
    "packs": (put("packs", "x"), "no list of texts (at packs)"),
    "no rules": (put("rules", []), "no list of 1 to 1000 rules (at rules)"),
    "a rule": (put("rules", [1]), "no rule (at rules[0])"),
    "features": (rule("features", [1]), "no text (at rules[0].features)"),
    "too short": (
        rule("rate", [0.1]),
        "a list of another length (at rules[0].rate); found 1; expected 5",
    ),
    "a truth": (rule("mean", [True] * 5), "no list of numbers (at rules[0].mean)"),
    "huge": (rule("mean", [10**400] * 5), "a number that is not finite (at rules[0].mean)"),
    "infinite": (rule("mean", [1e999] * 5), "no JSON"),
    "not a number": (rule("mean", [float("nan")] * 5), "NaN is no number"),
    "a rate above 1": (rule("rate", [1.5] * 5), "a firing rate is no share (at rules[0].rate)"),
    "half a request": (
        rule("max", [None] * 5),
        "has some of a rule's measurements and lacks others",
    ),
    "twice": (lambda tree: tree["rules"].append(tree["rules"][0]), "a rule stands there twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    change, words = WRONG[case]
    path = tmp_path / "b.json"
    write_baseline(path, baseline(1, 5))
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(DriftError) as refused:
        read_baseline(path)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "\ufeff{}", "[" * 100_000, "\x00", '{"kind": 1e999}']
)
def test_what_is_no_baseline_at_all_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DriftError, match="no baseline"):
        read_baseline(path)
    with pytest.raises(DriftError, match="no such file"):
        read_baseline(tmp_path / "none.json")


def test_a_recording_is_told_where_answers_are_steered() -> None:
    steering = sample(requests([answered(1, {"w": (1, 1, 1)}, mode="enforce")]))
    [rule_] = steering.measured
    muting = type(rule_)(rule_.policy, rule_.rule, "mute", "enforce", rule_.features)
    steering = type(steering)(
        steering.times, "m", frozenset(), frozenset(), {muting: steering.measured[rule_]}
    )
    assert "live ones are steered by p/w" in Baseline(steering, "recording", {}).notes[0]
    assert Baseline(steering, "log", {}).notes == ()
