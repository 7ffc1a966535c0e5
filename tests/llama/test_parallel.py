"""Requests side by side in one context: each as if it were alone, under its own program, on record by itself."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from scope_runtime import Runtime
from scope_runtime.errors import HookError, UsageError
from scope_runtime.events import RequestContext
from scope_runtime.llama import programs
from scope_runtime.llama.engine import Began, Generation
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource
from tests.conftest import Tiny

PROMPT = [5, 17, 33, 80, 41, 60, 77]
BOUND = 2e-3  # of a log probability: what other columns in the batch change in the last bits of a product


def opened(tiny: Tiny, policy: Path | None, n_parallel: int = 3) -> Runtime:
    return Runtime(tiny.model, policy, n_ctx=256, n_threads=1, n_parallel=n_parallel)


@pytest.fixture(scope="module")
def tenants(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for tenant a, another for b, none for others."""
    folder = tmp_path_factory.mktemp("tenants")
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), folder)
    text = tiny.policy.read_text(encoding="utf-8")
    for tenant, alpha in (("a", "0.5"), ("b", "0.2")):
        made = text.replace("{name: tiny}", f"{{name: of-{tenant}}}").replace(
            "spec:\n", f"spec:\n  selector: {{tenant: {tenant}}}\n"
        )
        (folder / f"{tenant}.yaml").write_text(made.replace("alpha: 0.5", f"alpha: {alpha}"))
    return folder


@pytest.fixture(scope="module")
def stronger(tenants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same policies for the same tenants, with another alpha."""
    folder = tmp_path_factory.mktemp("stronger")
    shutil.copytree(tenants, folder, dirs_exist_ok=True)
    for tenant, alpha in (("a", "0.5"), ("b", "0.2")):
        path = folder / f"{tenant}.yaml"
        path.write_text(path.read_text().replace(f"alpha: {alpha}", f"alpha: {alpha}5"))
    return folder


def ask(
    runtime: Runtime, tenant: str, prompt: Sequence[int] = PROMPT, **options: Any
) -> Generation:
    wanted: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "top_logprobs": 0, **options}
    return runtime.generate(prompt, labels={"tenant": tenant}, **wanted)


def together(count: int, work: Callable[[int], Generation]) -> list[Generation]:
    """All at once, each on a thread of its own."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def side_by_side(
    runtime: Runtime, count: int, work: Callable[[int, Began], Generation]
) -> list[Generation]:
    """All in the same batches: the first to draw waits on the computing thread until the last has asked."""
    engine = runtime._engine
    changed: threading.Condition = engine._changed  # type: ignore[attr-defined]
    all_asked = threading.Event()

    def began(program: object, revisions: object) -> None:
        with changed:
            if not all_asked.is_set():
                assert changed.wait_for(lambda: sum(engine.load) == count, 60)
                all_asked.set()

    return together(count, lambda i: work(i, began))


def same(one: Generation, other: Generation) -> None:
    assert one.tokens == other.tokens
    ours, theirs = ([s.logprob for s in each.scores] for each in (one, other))
    assert np.abs(np.subtract(ours, theirs)).max() <= BOUND


def logprobs(
    runtime: Runtime, answer: Generation, prompt: Sequence[int], tenant: str
) -> npt.NDArray[np.float64]:
    """Of every token (n_answer, n_vocab) at each place of an answer, as the runtime alone computes them."""
    tokens = [*prompt, *answer.tokens]
    rows = runtime.logits(tokens, {"tenant": tenant}, n_prompt=len(prompt))
    logits = rows[len(prompt) - 1 : -1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    out: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return out


def as_alone(answer: Generation, wanted: npt.NDArray[np.float64]) -> None:
    """The answer's tokens are the likeliest and as likely as wanted: ties may fall out either way, no more."""
    places = np.arange(len(answer.tokens))
    taken = wanted[places, list(answer.tokens)]
    assert (wanted.max(axis=1) - taken).max() <= BOUND
    assert np.abs(taken - [score.logprob for score in answer.scores]).max() <= BOUND


def test_isolation_each_answers_as_if_it_were_alone(tiny: Tiny, tenants: Path) -> None:
    prompts = {"a": PROMPT, "b": PROMPT[:4], "c": [*PROMPT, 9, 12]}
    with opened(tiny, tenants) as runtime:

        def work(i: int, began: Began) -> Generation:
            tenant = "abc"[i]
            return ask(runtime, tenant, prompts[tenant], request_id=tenant, began=began)

        found = dict(zip("abc", side_by_side(runtime, 3, work), strict=True))
    with opened(tiny, tenants, n_parallel=1) as runtime:
        alone = {tenant: ask(runtime, tenant, prompt) for tenant, prompt in prompts.items()}
        for tenant, answer in found.items():
            wanted = logprobs(runtime, answer, prompts[tenant], tenant)
            as_alone(answer, wanted)
            effect = np.abs(wanted - logprobs(runtime, answer, prompts[tenant], "c")).max()
            assert effect == 0 if tenant == "c" else effect > 20 * BOUND
            assert [e.rule for e in answer.report] == [e.rule for e in alone[tenant].report]
            assert {e.request_id for e in answer.report} == {tenant}
            assert answer.revisions == alone[tenant].revisions
    fired = {
        t: [e.detail["n_fired"] for e in g.report if e.what == "rule"] for t, g in found.items()
    }
    assert fired["c"] == []
    assert len({g.tokens for g in (alone["a"], alone["b"])}) == 2 or fired["a"] != fired["b"]


def test_more_requests_than_places_are_all_answered(tiny: Tiny) -> None:
    prompts = [[*PROMPT, i] for i in range(10)]
    with opened(tiny, tiny.policy) as runtime:
        found = together(10, lambda i: ask(runtime, "a", prompts[i]))
        assert runtime._engine.load == (0, 0)
    with opened(tiny, tiny.policy, n_parallel=1) as runtime:
        for prompt, answer in zip(prompts, found, strict=True):
            as_alone(answer, logprobs(runtime, answer, prompt, "a"))


def test_a_reload_reaches_every_running_answer_between_two_tokens(tiny: Tiny) -> None:
    other = tiny.policy.with_name("swapped.yaml")
    other.write_text(tiny.policy.read_text().replace("alpha: 0.5", "alpha: 0.1"))
    with opened(tiny, tiny.policy) as runtime:
        old = runtime.program.revision
        begun = threading.Barrier(2)
        swapped: list[str] = []

        def began(program: object, revisions: object) -> None:
            # On the computing thread, in the batch that ended the second prompt.
            if runtime._engine.load[0] == 2 and not swapped:
                swapped.append(runtime.set_policy(other).revision)

        def work(i: int) -> Generation:
            begun.wait(60)
            return ask(runtime, "a", [*PROMPT, i], began=began, max_tokens=200)

        answers = together(2, work)
    (new,) = swapped
    for answer in answers:
        assert [span.revision for span in answer.revisions] == [old, new]
        assert answer.revisions[1].from_position >= len(PROMPT) + 1
        rules = [e for e in answer.report if e.what == "rule" and e.rule == "quiet"]
        assert {e.detail["revision"] for e in rules} == {old, new}
        n_computed = answer.n_prompt + len(answer.tokens) - 1
        assert sum(e.detail["n_tokens"] for e in rules) == n_computed


def test_a_prompt_is_reused_under_its_own_program_alone(tiny: Tiny, tenants: Path) -> None:
    with opened(tiny, tenants, n_parallel=2) as runtime:
        first = ask(runtime, "a")
        again = ask(runtime, "a")
        assert first.n_reused == 0
        assert again.n_reused > 0
        same(again, first)
        ask(runtime, "c")
        assert ask(runtime, "b").n_reused == 0
        runtime.set_policy(tiny.policy)
        assert ask(runtime, "a").n_reused == 0
        assert runtime.acknowledged


def test_whoever_goes_away_frees_the_place(tiny: Tiny) -> None:
    with opened(tiny, tiny.policy, n_parallel=2) as runtime:
        for _ in range(4):
            stream = runtime.generate(PROMPT, stream=True, max_tokens=240, request_id="left")
            next(stream)
            stream.close()
        assert runtime._engine.load == (0, 0)
        ends = [e.detail["finish_reason"] for e in runtime.events() if e.what == "summary"]
        assert len(ends) == 4
        assert set(ends) <= {"cancelled", "length", "stop"}
        same(ask(runtime, "a"), ask(runtime, "a"))


def test_a_failure_ends_all_that_run_and_nothing_after(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tiny, tiny.policy, n_parallel=2) as runtime:
        wanted = ask(runtime, "a")
        context = runtime._engine.context
        decode = context.decode_columns

        def fails(*columns: Any) -> None:
            decode(*columns)
            raise HookError("llama_decode failed with code 2")

        with monkeypatch.context() as patched:
            patched.setattr(context, "decode_columns", fails)
            with pytest.raises(HookError):
                ask(runtime, "a", [*PROMPT, 3])
        after = ask(runtime, "a")
        assert after.n_reused == 0
        same(after, wanted)
        ends = [e.detail["finish_reason"] for e in runtime.events() if e.what == "summary"]
        assert ends == [wanted.finish_reason, "error", wanted.finish_reason]


def test_a_bad_request_harms_nobody(tiny: Tiny) -> None:
    with opened(tiny, tiny.policy, n_parallel=2) as runtime:
        with pytest.raises(UsageError, match="the grammar cannot be read"):
            ask(runtime, "a", grammar='root ::= "a')
        with pytest.raises(ZeroDivisionError):
            ask(runtime, "a", cancelled=lambda: bool(1 / 0))
        assert ask(runtime, "a").tokens
        assert runtime._engine.load == (0, 0)


def test_logits_are_those_of_one_at_a_time(tiny: Tiny) -> None:
    with opened(tiny, tiny.policy, n_parallel=1) as runtime:
        wanted = runtime.logits(PROMPT, n_prompt=4)
    with opened(tiny, tiny.policy) as runtime:
        before = ask(runtime, "a")
        np.testing.assert_array_equal(runtime.logits(PROMPT, n_prompt=4), wanted)
        same(ask(runtime, "a"), before)


def test_a_reload_gives_a_sequence_the_program_of_the_request_that_it_has_by_then(
    tiny: Tiny, tenants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may end, and another tenant's begin in its place, between the two halves of a reload."""
    with opened(tiny, tenants) as runtime:
        installed: Any = runtime._engine._installed
        mine, theirs = (RequestContext({"tenant": name}, name) for name in "ab")
        installed.begin(0, mine)
        compiled = programs.program_for

        def end_and_begin(source: ProgramSource, request: RequestContext) -> Program:
            monkeypatch.setattr(programs, "program_for", compiled)
            installed.end(0, ())
            installed.begin(0, theirs)
            return compiled(source, request)

        monkeypatch.setattr(programs, "program_for", end_and_begin)
        new = runtime.compile(tenants)
        installed.use(new, now=True)
        ours = {name: new.for_request({"tenant": name}, name).digest for name in "ab"}
        assert installed.program_of(0).digest == ours["b"] != ours["a"]
        installed.end(0, ())


def test_what_a_reload_has_loaded_is_there_when_it_comes(
    tiny: Tiny, tenants: Path, stronger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a request ends meanwhile, which lets go of what nobody runs under: tokens would wait for a second load."""
    with opened(tiny, tenants) as runtime:
        installed: Any = runtime._engine._installed
        hook = runtime._engine.context.live_hook
        for sequence, tenant in enumerate("ab"):
            installed.begin(sequence, RequestContext({"tenant": tenant}, tenant))
        new = runtime.compile(stronger)
        ours = {name: new.for_request({"tenant": name}, name) for name in "ab"}
        hold = hook.hold
        loaded: list[bytes] = []

        def hold_then_end(blob: bytes) -> int:
            loaded.append(blob)
            serial = hold(blob)
            if blob == ours["b"].blob:
                installed.end(1, ())
            return serial

        monkeypatch.setattr(hook, "hold", hold_then_end)
        installed.use(new, now=True)
        assert loaded == [new.program.blob, ours["a"].blob, ours["b"].blob]
        assert installed.program_of(0).revision == new.revision
        installed.end(0, ())


def test_a_reload_that_fails_leaves_every_sequence_as_it_was(
    tiny: Tiny, tenants: Path, stronger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do requests that begin and end after it, each of which assigns all sequences."""
    with opened(tiny, tenants) as runtime:
        installed: Any = runtime._engine._installed
        hook = runtime._engine.context.live_hook
        old, new = installed.source, runtime.compile(stronger)
        request = {name: RequestContext({"tenant": name}, name) for name in "abc"}
        installed.begin(0, request["a"])
        compiled, hold, assign = programs.program_for, hook.hold, hook.assign
        refused = new.for_request({"tenant": "b"}, "b").blob
        assigned: list[dict[int, str]] = []

        def begin_another(source: ProgramSource, request_of: RequestContext) -> Program:
            # So that its program is loaded when the other sequence's serial is settled.
            monkeypatch.setattr(programs, "program_for", compiled)
            installed.begin(1, request["b"])
            return compiled(source, request_of)

        def hold_or_refuse(blob: bytes) -> int:
            if blob == refused:
                raise HookError("no room for the program")
            return hold(blob)

        def assign_on_record(serials: dict[int, int]) -> int:
            number = assign(serials)
            assigned.append({at: installed.programs[n].revision for at, n in serials.items()})
            return number

        monkeypatch.setattr(programs, "program_for", begin_another)
        monkeypatch.setattr(hook, "hold", hold_or_refuse)
        with pytest.raises(HookError, match="no room"):
            installed.use(new, now=True)
        monkeypatch.setattr(hook, "assign", assign_on_record)
        installed.begin(2, request["c"])
        installed.end(2, ())
        assert installed.source is old
        assert [installed.program_of(at).revision for at in (0, 1)] == [old.revision] * 2
        assert assigned == [dict.fromkeys(range(n), old.revision) for n in (3, 2)]
        assert {program.revision for program in installed.programs.values()} == {old.revision}
        for sequence in (0, 1):
            installed.end(sequence, ())


def test_reloads_leave_nothing_behind(tiny: Tiny) -> None:
    others: Iterator[Path] = (_with_alpha(tiny, alpha / 100) for alpha in range(10, 30))
    with opened(tiny, tiny.policy, n_parallel=2) as runtime:
        ask(runtime, "a")
        for other in others:
            runtime.set_policy(other)
        assert len(runtime._engine._installed.programs) <= 2


def _with_alpha(tiny: Tiny, alpha: float) -> Path:
    path = tiny.policy.with_name("alpha.yaml")
    path.write_text(tiny.policy.read_text().replace("alpha: 0.5", f"alpha: {alpha}"))
    return path


def test_closing_ends_what_runs(tiny: Tiny) -> None:
    runtime = opened(tiny, tiny.policy, n_parallel=2)
    stream = runtime.generate(PROMPT, stream=True, max_tokens=240, temperature=0.0)
    next(stream)
    runtime.close()
    *_, last = stream
    assert isinstance(last, Generation)
    assert last.finish_reason in ("cancelled", "length", "stop")
    with pytest.raises(UsageError):
        ask(runtime, "a")
