"""What a request's own record says: how it was drawn, which arm of a rollout it was in, what a policy lets be kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.events import Event
from scope_runtime.llama import library
from scope_runtime.merge import contents_of
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import Contents, Keep, Policy
from scope_runtime.select import ProgramSource
from scope_runtime.types import MAX_SEED, ModelShape
from tests.conftest import Tiny

library.load()
PROMPT = [5, 17, 33, 80, 41, 60, 77]
HEAD = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: NAME}\nspec:\n"


@pytest.fixture(scope="module")
def runtime(tiny: Tiny) -> Iterator[Runtime]:
    text = tiny.policy.read_text()
    text = text.replace("{name: quiet,", "{name: quiet, rollout: {percent: 50, by: user},")
    text = text.replace("{name: watch,", "{name: watch, mode: audit,")
    text += (
        "  exceptions: [{selector: {user: eve}, rules: [push], owner: ops, until: 2999-01-01}]\n"
    )
    text += "  audit: {prompts: keep, outputs: commit}\n"
    path = tiny.policy.with_name("on-record.yaml")
    path.write_text(text)
    with Runtime(tiny.model, path, n_ctx=256, n_threads=1) as open_runtime:
        yield open_runtime


def summary(runtime: Runtime, **options: object) -> Event:
    answer = runtime.generate(PROMPT, max_tokens=4, **options)  # type: ignore[call-overload]
    event = answer.report[-1]
    assert event.what == "summary"
    assert isinstance(event, Event)
    return event


def test_how_it_was_drawn_is_on_record_and_draws_the_same_again(runtime: Runtime) -> None:
    first = summary(runtime, temperature=1.5, top_k=20, top_p=0.9)
    drawn = first.record()["sampling"]
    assert {k: drawn[k] for k in ("max_tokens", "temperature", "top_k", "top_p")} == {
        "max_tokens": 4,
        "temperature": 1.5,
        "top_k": 20,
        "top_p": 0.9,
    }
    assert 0 <= drawn["seed"] <= MAX_SEED
    assert summary(runtime, temperature=1.5).record()["sampling"]["seed"] != drawn["seed"]
    del drawn["max_tokens"]
    again = summary(runtime, **drawn)
    assert again.contents[1].tokens == first.contents[1].tokens
    assert summary(runtime, temperature=0.0).record()["sampling"]["seed"] is None


def test_the_arm_of_a_rollout_is_on_record(runtime: Runtime) -> None:
    """The arm is the draw; whether the rule acted is seen from its own record."""
    arms = set()
    for n in range(12):
        answer = runtime.generate(PROMPT, max_tokens=1, labels={"user": f"u{n}"})
        arm = answer.report[-1].record()["rollout"]
        assert set(arm) == {"tiny/quiet"}
        acted = any(event.rule == "quiet" for event in answer.report)
        assert acted == (arm["tiny/quiet"] == "in")
        arms.add(arm["tiny/quiet"])
    assert arms == {"in", "out"}


def test_exceptions_used_and_the_mode_are_on_record(runtime: Runtime) -> None:
    record = summary(runtime, labels={"user": "eve"}).record()
    assert record["exempted"] == ["tiny/push"]
    assert record["left_out"]["tiny/push"] == "exception"
    # Without push, eve is left with quiet (enforce) where the rollout reaches her, and watch (audit).
    assert record["mode"] == ("enforce" if record["rollout"]["tiny/quiet"] == "in" else "audit")
    assert summary(runtime, labels={"user": "bob"}).record()["mode"] == "enforce"


def test_contents_go_to_the_audit_log_alone(runtime: Runtime) -> None:
    event = summary(runtime, temperature=0.0)
    prompt, output = event.contents
    assert (prompt.name, prompt.tokens, prompt.keep) == ("prompt", tuple(PROMPT), Keep.KEEP)
    assert (output.name, output.keep, len(output.tokens)) == ("output", Keep.COMMIT, 4)
    assert prompt.text not in str(event.record())
    assert all(not each.contents for each in runtime.events())
    assert prompt.text not in repr(event)


def policy(name: str, audit: str, folder: Path) -> Policy:
    text = HEAD.replace("NAME", name) + (f"  audit: {audit}\n" if audit else "  mode: enforce\n")
    return parse_policy(text, file=str(folder / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((), (None, None)),
        (("",), (None, None)),
        (("", "{prompts: keep}"), (Keep.KEEP, None)),
        (("{prompts: keep}", "{prompts: commit, outputs: keep}"), (Keep.COMMIT, Keep.KEEP)),
        (
            ("{prompts: keep, outputs: keep}", "{prompts: off}", "{outputs: commit}"),
            (Keep.OFF, Keep.COMMIT),
        ),
    ],
)
def test_of_what_policies_say_the_most_private_counts(
    tmp_path: Path, said: tuple[str, ...], kept: tuple[Keep | None, Keep | None]
) -> None:
    members = [policy(f"p{n}", audit, tmp_path) for n, audit in enumerate(said)]
    assert contents_of(members) == Contents(*kept)


def test_only_what_policies_of_the_request_say_counts(tmp_path: Path) -> None:
    """One that is off says nothing; one that selects other requests says nothing of this one."""

    def source(*extra: str) -> ProgramSource:
        members = [
            parse_policy(
                HEAD.replace("NAME", f"p{n}") + text, file=str(tmp_path / f"p{n}.yaml"), files=False
            )
            for n, text in enumerate(extra)
        ]
        return ProgramSource(members, ModelShape("qwen3", 4, 64))

    keep, off = "  audit: {prompts: keep}\n", "  audit: {prompts: off}\n"
    acme, globex = {"tenant": "acme"}, {"tenant": "globex"}
    selected = source(keep, "  selector: {tenant: acme}\n" + off)
    assert selected.share(acme, "r").contents == Contents(prompts=Keep.OFF)
    assert selected.share(globex, "r").contents == Contents(prompts=Keep.KEEP)
    assert source("  mode: off\n" + keep).share({}, "r").contents == Contents()
    assert source("  mode: off\n" + off, keep).share({}, "r").contents == Contents(Keep.KEEP)
