"""A logged request run again: reproduced where all is as it was, refused where it is not, compared with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from scope_runtime import Runtime
from scope_runtime.audit import AuditLog
from scope_runtime.audit.logged import Logged, logged_request
from scope_runtime.audit.redact import Selection
from scope_runtime.audit.segments import LogFiles
from scope_runtime.cli.main import main
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.events import Event
from scope_runtime.lifecycle import Options
from scope_runtime.llama import library
from scope_runtime.policy.model import Keep
from scope_runtime.rerun import Replay, Rerun, Where
from tests.conftest import Tiny

library.load()
PROMPT = [5, 17, 33, 80, 41, 60, 77]
QUIET = Options(poll_s=600.0, events=False)


@dataclass(frozen=True, slots=True)
class Case:
    """A log of some requests, and what they ran under."""

    model: Path
    policy: Path
    state: Path
    files: LogFiles
    answers: dict[str, tuple[int, ...]]

    def logged(self, request_id: str) -> Logged:
        return logged_request(self.files, request_id=request_id)

    def run(self, request_id: str, **options: Any) -> Rerun:
        options.setdefault("recorded", Where(self.policy))
        return Replay(self.model, n_threads=1, **options).run(self.logged(request_id))


def softer(case: Case) -> Path:
    path = case.policy.with_name("softer.yaml")
    text = case.policy.read_text().replace("alpha: 0.5", "alpha: 0.1")
    path.write_text(text.replace("mute: [one, two]", "mute: one"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def case(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("rerun")
    (folder / "policies").mkdir()
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), folder / "policies" / name)
    policy = folder / "policies" / "policy.yaml"
    text = tiny.policy.read_text().replace(
        "{name: push,", "{name: push, rollout: {percent: 50, by: user},"
    )
    selects = (
        "  exceptions: [{selector: {user: eve}, rules: [quiet], owner: o, until: 2999-01-01}]\n"
    )
    policy.write_text(text + selects + "  audit: {prompts: keep, outputs: keep}\n")
    answers = {}
    with Runtime(
        tiny.model,
        policy,
        watch=QUIET,
        state=folder / "state",
        audit=folder / "log.jsonl",
        n_ctx=256,
        n_threads=1,
    ) as runtime:

        def ask(name: str, **options: Any) -> None:
            options = {"max_tokens": 10, "request_id": name, **options}
            answers[name] = runtime.generate(options.pop("prompt", PROMPT), **options).tokens

        ask("drawn", temperature=1.3, top_k=30)
        ask("cached", prompt=[*PROMPT, 9, 11], temperature=0.0)
        ask("eve", labels={"user": "eve"}, temperature=0.7, seed=5)
        ask("bob", labels={"user": "u1"}, temperature=0.7, seed=6)
        calls = iter([False, False, True])
        ask("cut", temperature=0.9, seed=7, cancelled=lambda: next(calls))
        ask("twice", seed=1)
        ask("twice", seed=2)
        grammar = "root ::= [a-z0-9 ]*"
        ask("ruled", grammar=grammar, temperature=0.5, seed=8)
        ask("redacted")
        assert runtime.audit is not None
        runtime.audit.redact(Selection(request_id="redacted"), "ops", "asked to")
    return Case(tiny.model, policy, folder / "state", LogFiles(folder / "log.jsonl"), answers)


@pytest.mark.parametrize("name", ["drawn", "cached", "eve", "bob", "cut"])
def test_an_answer_is_reproduced_token_by_token(case: Case, name: str) -> None:
    logged = case.logged(name)
    assert (logged.n_reused > 0) == (name in ("cached", "cut"))
    done = case.run(name)
    assert done.replayed.tokens == case.answers[name]
    assert (done.reproduced, done.first_difference, done.notes) == (True, None, ())
    assert len(done.rules) >= 1
    assert all(change.same for change in done.rules)
    assert all(change.before is not None for change in done.rules)


def test_who_got_which_rule_is_decided_again_as_it_was(case: Case) -> None:
    rules = {change.rule for change in case.run("eve").rules}
    assert "quiet" not in rules
    assert "quiet" in {change.rule for change in case.run("bob").rules}


def test_under_another_policy(case: Case) -> None:
    done = case.run("bob", against=Where(softer(case)))
    assert done.reproduced is True
    assert done.against is not None
    assert done.against.revision != done.replayed.revision
    changed = {change.rule: change for change in done.against_rules if not change.same}
    assert "quiet" in changed
    with Runtime(case.model, softer(case), n_ctx=256, n_threads=1) as runtime:
        sampling = case.logged("bob").sampling
        there = runtime.generate(
            PROMPT,
            labels={"user": "u1"},
            request_id="bob",
            **{key: sampling[key] for key in ("max_tokens", "temperature", "seed")},
        )
    assert done.against.tokens == there.tokens
    differs = next(
        (
            n
            for n, (a, b) in enumerate(zip(there.tokens, case.answers["bob"], strict=True))
            if a != b
        ),
        None,
    )
    assert done.against_difference == differs
    unsteered = case.run("bob", against=Where())
    assert unsteered.against is not None
    assert unsteered.against.revision == "none"
    assert all(change.after is None for change in unsteered.against_rules)


def test_a_revision_comes_from_the_state_directory(case: Case) -> None:
    [(revision, _)] = case.logged("drawn").revisions
    assert case.run("drawn", recorded=Where(state=case.state, revision=revision)).reproduced is True


REFUSED: dict[str, tuple[Callable[[Case], Any], str]] = {
    "policies": (
        lambda case: case.run("drawn", recorded=Where(softer(case))),
        "these are not the policies that the request ran under; found sha256:",
    ),
    "no policies": (
        lambda case: case.run("drawn", recorded=Where()),
        "these are not the policies that the request ran under; found none",
    ),
    "grammar": (lambda case: case.run("ruled"), "had to follow a grammar.*found no grammar"),
    "twice": (lambda case: case.logged("twice"), "several requests have this id; found twice, re"),
    "redacted": (lambda case: case.logged("redacted"), "prompt is not kept; found it was redacted"),
    "unknown": (lambda case: case.logged("nobody"), "no finished request of this id"),
    "record": (lambda case: logged_request(case.files, index=0), "record 0 is not of a request"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_as_it_was_is_refused(case: Case, what: str) -> None:
    with pytest.raises((UsageError, AuditError), match=REFUSED[what][1]):
        REFUSED[what][0](case)


def test_a_grammar_that_is_the_one_on_record(case: Case) -> None:
    assert case.run("ruled", grammar="root ::= [a-z0-9 ]*").reproduced is True


def test_another_model_is_refused_before_it_is_loaded(case: Case, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = bytearray(case.model.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with pytest.raises(UsageError, match="this is not the model that the request ran on"):
        Replay(other, Where(case.policy)).run(case.logged("drawn"))


def test_an_id_that_came_twice_is_told_apart_by_its_record(case: Case) -> None:
    from scope_runtime.audit.read import Query, read

    both = [r["chain"]["index"] for r in read(case.files, Query(request="twice", what="summary"))]
    first, second = (logged_request(case.files, index=index) for index in both)
    assert (first.sampling["seed"], second.sampling["seed"]) == (1, 2)
    assert first.rules.keys() == second.rules.keys()
    assert first.index < second.index


def edited(case: Case, tmp_path: Path, edit: Callable[[Event], Event]) -> Case:
    """A log whose request is an edited one, committed to as if it had happened so."""
    with Runtime(case.model, case.policy, n_ctx=256, n_threads=1) as runtime:
        answer = runtime.generate(PROMPT, max_tokens=6, temperature=0.0, request_id="q")
    log = AuditLog(tmp_path / "log.jsonl")
    log.write([*answer.report[:-1], edit(answer.report[-1])])
    log.close()
    return replace(case, files=LogFiles(log.path), answers={"q": answer.tokens})


def test_an_answer_that_is_another_is_told_with_its_first_token(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(event: Event) -> Event:
        prompt, output = event.contents
        tokens = (*output.tokens[:3], output.tokens[3] + 1, *output.tokens[4:])
        return replace(event, contents=(prompt, replace(output, tokens=tokens, text="another")))

    other = edited(case, tmp_path, edit)
    done = other.run("q")
    assert (done.reproduced, done.first_difference) == (False, 3)
    command = ["audit", "replay", "--request", "q", "--log", str(other.files.path)]
    command += ["-m", str(case.model), "--policies", str(case.policy)]
    assert main(command) == 1
    assert "not reproduced, another token at 3 of the answer" in capsys.readouterr().out


@pytest.mark.parametrize("same", [True, False])
def test_a_commitment_tells_whether_it_was_the_answer(
    case: Case, tmp_path: Path, same: bool
) -> None:
    def edit(event: Event) -> Event:
        prompt, output = event.contents
        tokens = output.tokens if same else (*output.tokens[:-1], 0)
        return replace(event, contents=(prompt, replace(output, tokens=tokens, keep=Keep.COMMIT)))

    done = edited(case, tmp_path, edit).run("q")
    assert (done.reproduced, done.first_difference) == (same, None)


def test_where_no_output_is_kept_the_log_cannot_tell(case: Case, tmp_path: Path) -> None:
    done = edited(case, tmp_path, lambda e: replace(e, contents=e.contents[:1])).run("q")
    assert done.reproduced is None
    edited(
        case,
        tmp_path / "b",
        lambda e: replace(e, contents=(replace(e.contents[0], keep=Keep.COMMIT),)),
    )
    with pytest.raises(AuditError, match="its prompt is not kept; found only a commitment was"):
        logged_request(LogFiles(tmp_path / "b" / "log.jsonl"), request_id="q")


def test_a_request_that_a_reload_reached_is_refused(case: Case, tmp_path: Path) -> None:
    with Runtime(
        case.model, case.policy, audit=tmp_path / "log.jsonl", n_ctx=256, n_threads=1
    ) as runtime:
        stream = runtime.generate(PROMPT, max_tokens=12, seed=0, request_id="q", stream=True)
        next(stream)
        runtime.set_policy(softer(case))
        list(stream)
    with pytest.raises(
        UsageError, match=r"several revisions took part; found sha256:.* position 0"
    ):
        replace(case, files=LogFiles(tmp_path / "log.jsonl")).run("q")


def test_by_command(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(case.logged("bob").index)
    command = ["audit", "replay", index, "--log", str(case.files.path), "-m", str(case.model)]
    command += ["--state", str(case.state)]
    assert main([*command, "--json", "--against", "none"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["reproduced"] is True
    assert said["logged"]["tokens"] == said["replayed"]["tokens"] == list(case.answers["bob"])
    assert said["against"]["revision"] == "none"
    assert {each["rule"]: each["same"] for each in said["rules"]}["quiet"] is True
    assert main([*command, "--against", str(softer(case))]) == 0
    out = capsys.readouterr().out
    assert f"reproduced, all {len(case.answers['bob'])} tokens" in out
    assert "quiet" in out
    assert main([*command, "--revision", "sha256:0"]) == 2
    assert "the record bears another revision" in capsys.readouterr().err
    assert main(["audit", "replay", "--log", str(case.files.path), "-m", str(case.model)]) == 2
