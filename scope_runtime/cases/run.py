"""Cases → results: each is run, and what came of it is held against what was expected."""

from __future__ import annotations

import datetime
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.cases.model import AlertState, Case, Expectation, PolicyTest, Range
from scope_runtime.compile import assumed_shape
from scope_runtime.errors import ScopeError
from scope_runtime.events import Event
from scope_runtime.policy.model import Policy
from scope_runtime.program import Program
from scope_runtime.recording import Recording, read_recording
from scope_runtime.replay import recorded_text, replay
from scope_runtime.resolve import load_artefacts
from scope_runtime.select import ProgramSource

if TYPE_CHECKING:
    from scope_runtime.runtime import Runtime

_SHOWN = 200


class CaseFailure(ScopeError):
    """An expectation that did not hold."""


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What one rule did; numbers are None where nothing was measured, positions where it never acted."""

    n_fired: int = 0
    activation_max: float | None = None
    dose_max: float | None = None
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request.

    Attributes:
        rules: by name, those that the request got.
        alerts: by name, those that ever fired.
        answer: None on a recording.
    """

    rules: Mapping[str, RuleOutcome]
    alerts: Mapping[str, AlertState]
    aborted: bool
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case: passed, failed (an expectation did not hold) or broken (it could not be run)."""

    case: Case
    failures: tuple[ScopeError, ...]
    seconds: float
    outcome: Outcome | None

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True, slots=True)
class TestRun:
    """Every result of every test, by file.

    Attributes:
        exercised: by policy file, which of its rules acted or fired in some case.
        rules: by policy file, all its rules in file order.
    """

    __test__ = False

    results: Mapping[str, tuple[CaseResult, ...]]
    exercised: Mapping[str, frozenset[str]]
    rules: Mapping[str, tuple[str, ...]]

    @property
    def coverage(self) -> float:
        """Share of rules that some case exercised, 0 to 1; 1 where there is no rule."""
        n_rules = sum(len(names) for names in self.rules.values())
        return sum(len(names) for names in self.exercised.values()) / n_rules if n_rules else 1.0


def run_tests(
    tests: Sequence[PolicyTest],
    *,
    untested: Iterable[Policy] = (),
    model: Path | None = None,
    root: Path | None = None,
    n_threads: int | None = None,
    n_ctx: int = 1024,
    each: Callable[[PolicyTest, CaseResult], None] = lambda test, result: None,
) -> TestRun:
    """Runs every case of every test.

    Args:
        untested: policies that count as rules without a case.
        model: for cases with a prompt that name no model.
        root: the directory that the policies' files may lie in; each policy's own unless given.
        each: told each result as it is known.
    """
    results: dict[str, tuple[CaseResult, ...]] = {}
    policies = {**{p.file: p for p in untested}, **{t.policy.file: t.policy for t in tests}}
    exercised: dict[str, set[str]] = {file: set() for file in policies}
    with ExitStack() as stack:
        bench = CaseBench(stack, model, root, n_threads, n_ctx)
        for test in tests:
            found: list[CaseResult] = []
            for case in test.cases:
                result = _result(bench, test.policy, case)
                each(test, result)
                found.append(result)
                if result.outcome is not None:
                    acted = {n for n, rule in result.outcome.rules.items() if rule.n_fired}
                    exercised[test.policy.file] |= acted
            results[test.file] = tuple(found)
    return TestRun(
        results,
        {file: frozenset(names) for file, names in exercised.items()},
        {file: tuple(rule.name for rule in p.rules) for file, p in policies.items()},
    )


def _result(bench: CaseBench, policy: Policy, case: Case) -> CaseResult:
    started = time.perf_counter()
    outcome: Outcome | None = None
    failures: tuple[ScopeError, ...]
    try:
        outcome = bench.outcome(policy, case)
        judged = (judge(expected, outcome) for expected in case.expectations)
        failures = tuple(failure for failure in judged if failure is not None)
    except ScopeError as error:
        failures = (error,)
    return CaseResult(case, failures, time.perf_counter() - started, outcome)


@dataclass(slots=True)
class CaseBench:
    """What cases share: a recording is read once, a model is loaded once. Policies need not lie in files."""

    stack: ExitStack
    model: Path | None
    root: Path | None
    n_threads: int | None
    n_ctx: int
    _recordings: dict[Path, Recording] = field(default_factory=dict)
    _runtimes: dict[Path, Runtime] = field(default_factory=dict)

    def outcome(self, policy: Policy, case: Case) -> Outcome:
        """What a policy does in a case."""
        return self._on_recording(policy, case) if case.recording else self._on_model(policy, case)

    def _on_recording(self, policy: Policy, case: Case) -> Outcome:
        assert case.recording is not None
        if case.recording not in self._recordings:
            self._recordings[case.recording] = read_recording(case.recording)
        recording = self._recordings[case.recording]
        day = datetime.date.fromisoformat(case.date) if case.date else datetime.date.today()
        source = ProgramSource(
            policy, assumed_shape(policy, load_artefacts(policy)), today=lambda: day
        )
        program = source.for_request(case.labels, case.request_id)
        text, n_prompt = recorded_text(recording, case.text, program, case.prompt_tokens)
        done = replay(program, text, n_prompt, labels=case.labels)
        return outcome_of(program, done.events, aborted=done.aborted)

    def _on_model(self, policy: Policy, case: Case) -> Outcome:
        assert case.prompt is not None
        runtime = self._runtime(case)
        runtime.take_up(runtime.compiled([policy]), policy=policy.file)
        options: dict[str, object] = {
            "labels": case.labels,
            "request_id": case.request_id,
            "max_tokens": case.max_tokens,
            "temperature": 0.0,
        }
        if case.raw:
            answer = runtime.generate(case.prompt, **options)  # type: ignore[call-overload]
        else:
            messages = [{"role": "user", "content": case.prompt}]
            if case.system is not None:
                messages.insert(0, {"role": "system", "content": case.system})
            answer = runtime.chat(messages, **options)  # type: ignore[call-overload]
        aborted = answer.finish_reason == "abort"
        return outcome_of(None, answer.report, aborted=aborted, answer=answer.text)

    def _runtime(self, case: Case) -> Runtime:
        path = case.model or self.model
        if path is None:
            raise CaseFailure(
                "the case needs a model",
                location=case.location,
                expected="model: in the case, or --model",
            )
        return self.runtime(path)

    def runtime(self, path: Path) -> Runtime:
        """The model, loaded when it is first asked for."""
        # llama.cpp only where a case needs it: recordings do not.
        from scope_runtime.runtime import Runtime

        if path not in self._runtimes:
            runtime = Runtime(
                path, policy_root=self.root, n_ctx=self.n_ctx, n_threads=self.n_threads
            )
            self._runtimes[path] = self.stack.enter_context(runtime)
        return self._runtimes[path]


def outcome_of(
    program: Program | None, report: Sequence[Event], *, aborted: bool, answer: str | None = None
) -> Outcome:
    """A request's report as an outcome; rules of ``program`` that have no event did nothing."""
    rules = {rule.name: RuleOutcome() for rule in program.rules} if program is not None else {}
    alerts: dict[str, AlertState] = {}
    for event in report:
        if event.rule is None:
            continue
        if event.what == "rule":
            detail = event.detail
            positions = detail["positions"] or {"first": None, "last": None}
            rules[event.rule] = RuleOutcome(
                n_fired=detail["n_fired"],
                activation_max=detail["activation"]["max"],
                dose_max=detail["dose"]["max"],
                first=positions["first"],
                last=positions["last"],
            )
        elif event.what == "firing":
            alerts[event.rule] = AlertState.FIRING
        elif event.what == "resolved":
            alerts[event.rule] = AlertState.RESOLVED
    return Outcome(rules, alerts, aborted, answer)


def judge(expected: Expectation, outcome: Outcome) -> CaseFailure | None:
    """What does not hold of an expectation; None: it holds."""
    wanted = expected.wanted
    if expected.what == "aborts":
        held, found = outcome.aborted is wanted, "it did" if outcome.aborted else "it did not"
        message, asked = "ending the generation", "that it does" if wanted else "that it does not"
    elif expected.what == "alert":
        state = outcome.alerts.get(expected.subject, AlertState.QUIET)
        fired = wanted is AlertState.FIRED and state is not AlertState.QUIET
        held, found = fired or state is wanted, str(state)
        message, asked = f"the alert {expected.subject}", str(wanted)
    elif expected.subject:
        held, found = _rule_holds(expected, outcome.rules.get(expected.subject))
        message = f"{expected.what} of the rule {expected.subject}"
        asked = str(wanted) if isinstance(wanted, Range) else _given(bool(wanted))
    else:
        text = outcome.answer or ""
        held, found = _text_holds(expected, text), repr(text[:_SHOWN])
        message, asked = "the answer", f"{expected.what.replace('_', ' ')} {wanted!r}"
    if held:
        return None
    return CaseFailure(
        f"{message} is not as expected",
        location=expected.location,
        key=expected.key,
        found=found,
        expected=asked,
    )


def _given(applies: bool) -> str:
    return "given to the request" if applies else "not given to the request"


def _rule_holds(expected: Expectation, rule: RuleOutcome | None) -> tuple[bool, str]:
    if expected.what == "applies":
        return (rule is not None) is expected.wanted, _given(rule is not None)
    did = rule or RuleOutcome()
    values = {
        "tokens": did.n_fired,
        "first": did.first,
        "last": did.last,
        "activation": did.activation_max,
        "dose": did.dose_max,
    }
    value = values[expected.what]
    assert isinstance(expected.wanted, Range)
    if value is None:
        found = "nothing measured" if expected.what in ("activation", "dose") else "none"
    else:
        found = f"{value:g}"
    if rule is None:
        found = f"{found}: the request does not get the rule"
    return expected.wanted.holds(value), found


def _text_holds(expected: Expectation, text: str) -> bool:
    wanted = str(expected.wanted)
    if expected.what in ("contains", "excludes"):
        return (wanted in text) is (expected.what == "contains")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = re.search(wanted, text) is not None
    return found is (expected.what == "matches")
