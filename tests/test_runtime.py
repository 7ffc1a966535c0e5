"""The runtime's promises: atomic policies, every request on record, clean ends, several at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scope_runtime import Runtime, ScopeError
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.errors import HookError, UsageError
from scope_runtime.events import Event, Kind
from scope_runtime.llama import library
from scope_runtime.llama.engine import Generation
from tests.conftest import Tiny

library.load()
PROMPT = [5, 17, 33, 80, 41, 60, 77]


@pytest.fixture(scope="module")
def runtime(tiny: Tiny) -> Runtime:
    with Runtime(tiny.model, tiny.policy, n_ctx=256, n_threads=1) as open_runtime:
        yield open_runtime


def policy(tiny: Tiny, name: str, **changes: str) -> Path:
    """The tiny policy with parts of its text replaced."""
    text = tiny.policy.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path = tiny.policy.with_name(f"{name}.yaml")
    path.write_text(text)
    return path


def test_greedy_answers_are_the_same_twice_and_steering_changes_them(tiny: Tiny) -> None:
    with Runtime(tiny.model, tiny.policy, n_ctx=256, n_threads=1) as rt:
        first = rt.generate(PROMPT, max_tokens=20, temperature=0.0)
        again = rt.generate(PROMPT, max_tokens=20, temperature=0.0)
        rt.set_policy(None)
        unsteered = rt.generate(PROMPT, max_tokens=20, temperature=0.0)
    assert first.tokens == again.tokens
    assert again.n_reused > 0
    assert unsteered.n_reused == 0
    assert not np.array_equal(first.tokens, unsteered.tokens)


@pytest.mark.parametrize("labels", [{"tenant": 5}, {5: "tenant"}, {"tenant": None}, "tenant"])
def test_labels_that_no_selector_could_match_are_refused(runtime: Runtime, labels: Any) -> None:
    """They would select nothing, and the request would run unsteered without a word."""
    with pytest.raises(UsageError, match="label"):
        runtime.generate([5, 17], max_tokens=1, labels=labels)
    with pytest.raises(UsageError, match="label"):
        runtime.logits([5, 17], labels)


def test_a_seed_draws_the_same_answer(runtime: Runtime) -> None:
    answers = [runtime.generate(PROMPT, max_tokens=12, seed=3).tokens for _ in range(2)]
    assert answers[0] == answers[1]
    assert runtime.generate(PROMPT, max_tokens=12, seed=4).tokens != answers[0]


def test_a_request_leaves_one_record_per_rule_and_one_of_its_own(runtime: Runtime) -> None:
    answer = runtime.generate(
        PROMPT, max_tokens=8, temperature=0.0, labels={"tenant": "acme"}, request_id="q-1"
    )
    rules = {e.rule: e for e in answer.report if e.what == "rule"}
    assert set(rules) == {"quiet", "push", "watch"}
    n_computed = len(PROMPT) + len(answer.tokens) - 1  # the last answer token is never decoded
    assert rules["quiet"].detail["n_tokens"] == n_computed
    # Phase generation starts at the last prompt token: as many columns as answer tokens.
    assert rules["push"].detail["n_tokens"] == len(answer.tokens)
    assert rules["push"].detail["dose"]["mean"] == pytest.approx(0.5, rel=1e-4)
    summary = answer.report[-1]
    assert summary.what == "summary"
    assert summary.request_id == "q-1"
    assert summary.labels == {"tenant": "acme"}
    assert summary.detail["finish_reason"] == answer.finish_reason
    revision = runtime.program.revision
    assert [(s.revision, s.from_position) for s in answer.revisions] == [(revision, 0)]


def test_a_stream_yields_the_text_and_then_the_generation(runtime: Runtime) -> None:
    *pieces, last = runtime.generate(PROMPT, max_tokens=10, temperature=0.0, stream=True)
    assert isinstance(last, Generation)
    assert "".join(pieces) == last.text


def test_an_abandoned_stream_frees_the_runtime(runtime: Runtime) -> None:
    stream = runtime.generate(PROMPT, max_tokens=50, temperature=0.0, stream=True)
    next(stream)
    stream.close()
    assert runtime.events()[-1].detail["finish_reason"] == "cancelled"
    assert runtime.generate(PROMPT, max_tokens=2, temperature=0.0).finish_reason == "length"


def test_cancelled_is_asked_before_each_token(runtime: Runtime) -> None:
    asked = iter([False, False, True])
    answer = runtime.generate(PROMPT, max_tokens=50, seed=1, cancelled=lambda: next(asked))
    assert (answer.finish_reason, len(answer.tokens)) == ("cancelled", 2)


@pytest.mark.parametrize("bad", ["missing", "broken", "misfit"])
def test_a_policy_that_does_not_load_changes_nothing(tiny: Tiny, bad: str) -> None:
    path = {
        "missing": lambda: tiny.policy.with_name("nothing-here.yaml"),
        "broken": lambda: policy(tiny, "broken", a=("mute: [one, two]", "mute: [one, tow]")),
        "misfit": lambda: policy(tiny, "misfit", a=("layer: 2, id: 5", "layer: 2, id: 999999")),
    }[bad]()
    with Runtime(tiny.model, tiny.policy, n_ctx=256, n_threads=1) as rt:
        before = rt.logits(PROMPT)
        revision = rt.program.revision
        with pytest.raises(ScopeError):
            rt.set_policy(path)
        assert rt.program.revision == revision
        assert np.array_equal(rt.logits(PROMPT), before)
        refused = [e for e in rt.events() if e.what == "refused"]
        assert refused[-1].detail["policy"] == str(path)


def test_a_policy_that_does_not_load_at_the_start_is_an_error(tiny: Tiny) -> None:
    with pytest.raises(ScopeError):
        Runtime(tiny.model, tiny.policy.with_name("nothing-here.yaml"), n_ctx=256)


def test_a_policy_is_held_against_the_header_before_the_weights_are_read(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_weights(*_: object, **__: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("scope_runtime.runtime.model_digest", reads_weights)
    monkeypatch.setattr("scope_runtime.runtime.Engine", reads_weights)
    bad = policy(tiny, "other-model", a=("alpha: 0.5", "alpha: .nan"))
    log = tmp_path / "log.jsonl"
    with pytest.raises(ScopeError):
        Runtime(tiny.model, bad, audit=log)
    [_, line] = map(json.loads, log.read_text().splitlines())
    assert (line["kind"], line["what"]) == ("policy", "refused")


def test_a_reload_reaches_the_running_answer_at_its_next_token(tiny: Tiny) -> None:
    other = policy(tiny, "other", a=("alpha: 0.5", "alpha: 0.1"))
    with Runtime(tiny.model, tiny.policy, n_ctx=256, n_threads=1) as rt:
        old = rt.program.revision
        stream = rt.generate(PROMPT, max_tokens=12, seed=0, stream=True)
        seen = next(stream)
        new = rt.set_policy(other).revision
        *_, answer = stream
        assert seen
        assert isinstance(answer, Generation)
        assert [s.revision for s in answer.revisions] == [old, new]
        assert answer.revisions[1].from_position >= len(PROMPT)
        # Its KV is mixed: what the old policy computed is not reused under the new one.
        fresh = rt.generate(PROMPT, max_tokens=12, temperature=0.0)
        assert fresh.n_reused == 0
        assert [s.revision for s in fresh.revisions] == [new]


def test_apply_next_request_leaves_the_running_answer_alone(tiny: Tiny) -> None:
    other = policy(tiny, "patient", a=("spec:\n", "spec:\n  apply: next-request\n"))
    with Runtime(tiny.model, tiny.policy, n_ctx=256, n_threads=1) as rt:
        old = rt.program.revision
        stream = rt.generate(PROMPT, max_tokens=12, seed=0, stream=True)
        next(stream)
        new = rt.set_policy(other).revision
        *_, answer = stream
        assert isinstance(answer, Generation)
        assert [s.revision for s in answer.revisions] == [old]
        after = rt.generate(PROMPT, max_tokens=2, seed=0)
        assert [s.revision for s in after.revisions] == [new]


ABORT = ("above: -1.0}", "above: -1.0, for: 3 tokens, actions: [log, abort]}")


def test_abort_ends_the_answer_with_its_own_reason(tiny: Tiny) -> None:
    path = policy(tiny, "abort", a=ABORT, b=("two: {pack", "two: {gate: none, pack"))
    path.write_text(path.read_text().replace("above: -1.0", "above: -1e9"))
    with Runtime(tiny.model, path, n_ctx=256, n_threads=1) as rt:
        for _ in range(2):  # the second prompt is a reused one, and must abort all the same
            answer = rt.generate(PROMPT, max_tokens=50, seed=0)
            assert (answer.finish_reason, answer.tokens) == ("abort", ())
            fired = [e for e in answer.report if e.what == "firing"]
            assert [(e.rule, e.detail["position"]) for e in fired] == [("watch", 2)]


def test_requests_from_many_threads_take_turns(runtime: Runtime) -> None:
    alone = [runtime.generate([*PROMPT, n], max_tokens=6, temperature=0.0).tokens for n in range(4)]
    together: dict[int, tuple[int, ...]] = {}

    def ask(n: int) -> None:
        together[n] = runtime.generate([*PROMPT, n], max_tokens=6, temperature=0.0).tokens

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[n] for n in range(4)] == alone


def test_two_runtimes_side_by_side_do_not_see_each_other(tiny: Tiny) -> None:
    with (
        Runtime(tiny.model, tiny.policy, n_ctx=128, n_threads=1) as steered,
        Runtime(tiny.model, n_ctx=128, n_threads=1) as plain,
    ):
        one, other = steered.logits(PROMPT), plain.logits(PROMPT)
        assert np.array_equal(steered.logits(PROMPT), one)
        assert np.array_equal(plain.logits(PROMPT), other)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("prompt", [[], [1] * 256])
def test_a_prompt_that_cannot_be_answered_is_refused(runtime: Runtime, prompt: list[int]) -> None:
    with pytest.raises(ScopeError):
        runtime.generate(prompt)
    assert runtime.generate(PROMPT, max_tokens=1).tokens


def test_the_answer_stops_where_the_context_ends(runtime: Runtime) -> None:
    answer = runtime.generate(PROMPT, max_tokens=10_000, seed=0)
    if answer.finish_reason == "length":
        assert len(PROMPT) + len(answer.tokens) == 256


def test_everything_is_in_the_audit_file_before_the_answer_is_returned(
    tiny: Tiny, tmp_path: Path
) -> None:
    log = tmp_path / "audit" / "log.jsonl"
    with Runtime(tiny.model, tiny.policy, audit=log, n_ctx=128, n_threads=1) as rt:
        answer = rt.generate(PROMPT, max_tokens=3, temperature=0.0, request_id="x")
        with pytest.raises(ScopeError):
            rt.set_policy(tmp_path / "none.yaml")
        header, *lines = [json.loads(line) for line in log.read_text().splitlines()]
        rt.set_policy(None)
    assert header["what"] == "segment"
    whats = [(line["kind"], line["what"]) for line in lines]
    assert whats[:2] == [("runtime", "start"), ("policy", "swapped")]
    assert whats[-1] == ("policy", "refused")
    for index, line in enumerate(lines, 1):
        assert line.pop("chain")["index"] == index
    assert [line for line in lines if line.get("request_id") == "x"] == [
        e.record() for e in answer.report
    ]
    for line in lines:
        assert line["v"] == 1
        assert line["digests"]["model"].startswith("sha256:")
    assert log.stat().st_mode & 0o777 == 0o600


def test_after_a_failed_decode_the_next_answer_starts_afresh(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes after part of the prompt is in memory: what is in memory then is on no list."""
    wanted = runtime.generate(PROMPT, max_tokens=5, temperature=0.0)
    context = runtime._engine.context  # the one way to make llama.cpp fail
    decode = context.decode

    def fails(tokens: list[int], first: int, **keys: bool) -> None:
        decode(tokens[: len(tokens) // 2], first, **keys)
        raise HookError("llama_decode failed with code 2")

    with monkeypatch.context() as patched:
        patched.setattr(context, "decode", fails)
        with pytest.raises(HookError):
            runtime.generate(PROMPT[:3] + PROMPT, max_tokens=5)
    assert runtime.events()[-1].detail["finish_reason"] == "error"
    again = runtime.generate(PROMPT, max_tokens=5, temperature=0.0)
    assert (again.tokens, again.n_reused) == (wanted.tokens, 0)


def test_a_stream_left_open_ends_with_the_runtime(tiny: Tiny) -> None:
    """What went wrong outside is seen, and nothing waits for itself."""
    rt = Runtime(tiny.model, n_ctx=64, n_threads=1)

    def fails_in_the_middle() -> None:
        with rt:
            pieces = rt.generate(PROMPT, stream=True)
            next(pieces)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_in_the_middle()
    assert rt.events()[-1].detail["finish_reason"] == "cancelled"


def test_a_thread_that_would_wait_for_its_own_stream_is_told(runtime: Runtime) -> None:
    pieces = runtime.generate(PROMPT, stream=True, max_tokens=20)
    next(pieces)
    with pytest.raises(UsageError, match="still open"):
        runtime.generate(PROMPT, max_tokens=1)
    pieces.close()
    assert runtime.generate(PROMPT, max_tokens=1).tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_token": 1}, "no such option: max_token"),
        ({"seed": -1}, "seed is out of range"),
        ({"seed": 2**32 - 1}, "seed is out of range"),
        ({"temperature": float("nan")}, "temperature is out of range"),
        ({"max_tokens": -1}, "max_tokens is out of range"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    runtime: Runtime, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        runtime.generate(PROMPT, **options)


@pytest.mark.parametrize("prompt", [[10**6], [-1], "\udcff"])
def test_prompts_that_are_none_are_refused(runtime: Runtime, prompt: object) -> None:
    with pytest.raises(UsageError):
        runtime.generate(prompt)


class Noted:
    """A sink that only remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def write(self, events: Sequence[Event]) -> None:
        self.events += events

    def close(self) -> None:
        self.closed += 1


def test_a_sink_gets_every_event_and_is_closed_with_the_runtime(tiny: Tiny) -> None:
    noted = Noted()
    with Runtime(tiny.model, tiny.policy, sinks=[noted], n_ctx=128, n_threads=1) as rt:
        rt.generate(PROMPT, max_tokens=2, temperature=0.0)
        assert noted.events == list(rt.events())
        assert noted.closed == 0
    assert noted.closed == 1


class Broken:
    """Takes nothing once it is told so, and cannot be closed either."""

    broken = False

    def write(self, events: Sequence[Event]) -> None:
        if self.broken:
            raise UsageError("cannot take it")

    def close(self) -> None:
        raise UsageError("cannot be closed")


def test_a_sink_that_fails_takes_nothing_from_the_others(tiny: Tiny, tmp_path: Path) -> None:
    """Not an event from those after it, not its end from the audit log, and nobody overlooks it."""
    broken, noted = Broken(), Noted()
    log = tmp_path / "audit.jsonl"
    rt = Runtime(tiny.model, tiny.policy, sinks=[broken, noted], audit=log, n_ctx=128, n_threads=1)
    broken.broken = True
    with pytest.raises(UsageError, match="cannot take it"):
        rt.record("note", Kind.RUNTIME)
    assert noted.events == list(rt.events())
    assert noted.events[-1].what == "note"
    with pytest.raises(UsageError, match="cannot be closed"):
        rt.close()
    assert noted.closed == 1
    report = verify(LogFiles(log))
    assert (report.bad, report.covered) == (None, report.n_records)
