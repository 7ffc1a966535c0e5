"""A request under policies of its own: steered as if they were in force, and nobody else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from scope_runtime import Runtime
from scope_runtime.alerts.book import AlertBook
from scope_runtime.alerts.options import AlertOptions
from scope_runtime.drift.measure import Collector
from scope_runtime.llama.engine import Generation
from scope_runtime.select import ProgramSource
from tests.conftest import Tiny

PROMPT = [5, 17, 33, 80, 41, 60, 77]


@pytest.fixture(scope="module")
def references(tiny: Tiny) -> dict[str, Generation]:
    """What is answered where the policy is in force, and where none is."""
    with opened(tiny, 1) as runtime:
        free = ask(runtime)
        runtime.set_policy(tiny.policy)
        return {"free": free, "steered": ask(runtime)}


@pytest.fixture(params=[1, 2], ids=["one at a time", "side by side"])
def runtime(tiny: Tiny, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with opened(tiny, request.param) as made:
        yield made


def opened(tiny: Tiny, n_parallel: int, **options: Any) -> Runtime:
    return Runtime(tiny.model, n_ctx=256, n_threads=1, n_parallel=n_parallel, **options)


def ask(runtime: Runtime, trial: ProgramSource | None = None, **options: Any) -> Generation:
    return runtime.generate(PROMPT, max_tokens=16, temperature=0.0, trial=trial, **options)


def said(answer: Generation) -> tuple[tuple[int, ...], list[tuple[str, int]]]:
    return answer.tokens, [(span.revision, span.from_position) for span in answer.revisions]


def test_a_trial_answers_as_if_its_policies_were_in_force(
    runtime: Runtime, tiny: Tiny, references: dict[str, Generation]
) -> None:
    trial = runtime.compile(tiny.policy)
    for _ in range(2):  # no cache crosses over, either way
        assert said(ask(runtime, trial)) == said(references["steered"])
        assert said(ask(runtime)) == said(references["free"])
    assert runtime.program.revision == "none"


def test_a_trial_of_nothing_is_unsteered_while_a_policy_is_in_force(
    runtime: Runtime, tiny: Tiny, references: dict[str, Generation]
) -> None:
    runtime.set_policy(tiny.policy)
    assert said(ask(runtime, runtime.compile(None))) == said(references["free"])
    assert said(ask(runtime)) == said(references["steered"])


def test_a_trial_is_on_record_as_one_and_others_are_not(runtime: Runtime, tiny: Tiny) -> None:
    tried = ask(runtime, runtime.compile(tiny.policy), request_id="tried")
    ask(runtime, request_id="plain")
    records = [event.record() for event in runtime.events() if event.request_id]
    assert {each["what"] for each in records if each["request_id"] == "tried"} >= {
        "rule",
        "firing",
        "summary",
    }
    assert all(each.get("trial") == (each["request_id"] == "tried" or None) for each in records)
    assert len(tried.report) == sum(each["request_id"] == "tried" for each in records)


def test_what_is_taken_up_meanwhile_does_not_reach_a_trial_but_the_switch_does(
    runtime: Runtime, tiny: Tiny, references: dict[str, Generation]
) -> None:
    trial, nothing = runtime.compile(tiny.policy), runtime.compile(None)
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "trial": trial}

    def interrupted(by: ProgramSource) -> Generation:
        calls = iter(range(1_000))

        def cancelled() -> bool:
            if next(calls) == 4:  # on the computing thread, between two tokens
                runtime.take_up(by, now=True)
            return False

        return runtime.generate(PROMPT, cancelled=cancelled, **options)

    assert said(interrupted(nothing)) == said(references["steered"])
    off = interrupted(ProgramSource(None, runtime.shape, trials=False))
    assert [span.revision for span in off.revisions] == [trial.revision, "none"]
    assert said(ask(runtime, trial)) == said(references["free"])


def test_alerts_over_all_requests_and_drift_pass_trials_over(tiny: Tiny) -> None:
    """Whoever tries a policy pages nobody, and is no part of what is normal."""
    with opened(tiny, 1) as runtime:
        ask(runtime, runtime.compile(tiny.policy), request_id="tried")
        events = [event for event in runtime.events() if event.request_id == "tried"]
    assert any(event.what == "firing" for event in events)
    book = AlertBook(AlertOptions())
    book.observe(events)
    book.catch_up(event.record() for event in events)
    assert book.status()["alerts"] == []
    book.observe(replace(e, detail={**e.detail, "trial": None}) for e in events)
    assert len(book.status()["alerts"]) == 1
    collector = Collector()
    assert [collector.add(event.record()) for event in events] == [None] * len(events)
