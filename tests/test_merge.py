"""Several policies in force at once: who gets which, and what is refused before anybody gets it."""

from __future__ import annotations

import json
import pickle
import shutil
from datetime import date
from pathlib import Path

import pytest

from scope_runtime.compile import check_against_packs
from scope_runtime.errors import PolicyErrors
from scope_runtime.lifecycle import worker
from scope_runtime.policy import load_policies, load_policy, policy_revision, set_revision
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from tests.conftest import Scope, Tiny

HEAD = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {{name: {name}}}\nspec:\n"
FEATURES = """\
  features:
    one: {pack: pack.gguf, layer: 1, id: 3}
    two: {pack: pack.gguf, layer: 2, id: 5}
    style: {vector: vector.gguf, layers: [2]}
"""


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A directory with the tiny model's pack and vector, and no policy yet."""
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), tmp_path / name)
    return tmp_path


def write(folder: Path, name: str, spec: str, *, file: str | None = None) -> Path:
    path = folder / f"{file or name}.yaml"
    path.write_text(HEAD.format(name=name) + FEATURES + spec, encoding="utf-8")
    return path


def shape_of(folder: Path) -> ModelShape:
    program = check_against_packs(load_policy(next(folder.glob("*.yaml"))))
    return ModelShape(program.architecture, program.n_layer, program.n_embd)


def source(folder: Path, today: date = date(2026, 6, 1)) -> ProgramSource:
    return ProgramSource(load_policies(folder), shape_of(folder), today=lambda: today)


def names(program: Program) -> set[tuple[str, str]]:
    return {(rule.policy, rule.name) for rule in program.rules}


MUTE_ACME = "  selector: {tenant: acme}\n  rules: [{name: quiet, mute: one}]\n"
MUTE_OTHERS = "  selector: {tenant: [globex, initech]}\n  rules: [{name: quiet, mute: one}]\n"
STYLE = "  rules: [{name: push, amplify: style, alpha: 0.5, when: {phase: generation}}]\n"


def test_each_request_gets_the_merge_of_the_policies_that_select_it(folder: Path) -> None:
    write(folder, "b-acme", MUTE_ACME)
    write(folder, "c-others", MUTE_OTHERS)
    write(folder, "a-all", STYLE)
    made = source(folder)
    assert names(made.for_request({"tenant": "acme"}, "r")) == {
        ("a-all", "push"),
        ("b-acme", "quiet"),
    }
    assert names(made.for_request({"tenant": "globex"}, "r")) == {
        ("a-all", "push"),
        ("c-others", "quiet"),
    }
    assert names(made.for_request({}, "r")) == {("a-all", "push")}


def test_a_set_is_named_by_its_sorted_members_and_so_is_every_program_of_it(folder: Path) -> None:
    paths = [write(folder, "b", MUTE_ACME), write(folder, "a", STYLE)]
    made = source(folder)
    assert made.revision == set_revision(policy_revision(load_policy(path)) for path in paths)
    assert {made.for_request({"tenant": t}, "r").revision for t in ("acme", "other")} == {
        made.revision
    }
    assert [policy.name for policy in made.policies] == ["a", "b"]


def test_the_merge_is_the_same_whatever_the_files_are_called(folder: Path, tmp_path: Path) -> None:
    write(folder, "a", STYLE, file="2")
    write(folder, "b", MUTE_ACME, file="1")
    one = source(folder).for_request({"tenant": "acme"}, "r")
    (folder / "2.yaml").rename(folder / "0.yaml")
    assert source(folder).for_request({"tenant": "acme"}, "r").digest == one.digest


def test_a_request_that_one_policy_selects_runs_under_what_that_policy_compiles_to(
    folder: Path,
) -> None:
    write(folder, "a", MUTE_ACME)
    alone = source(folder).program
    write(
        folder,
        "b",
        "  selector: {tenant: globex}\n  rules: [{name: watch, alert: two, above: 1}]\n",
    )
    merged = source(folder).for_request({"tenant": "acme"}, "r")
    assert merged.digest == alone.digest
    assert names(merged) == {("a", "quiet")}
    assert merged.rules[0].targets == alone.rules[0].targets


def test_a_policy_that_is_off_or_selects_nobody_adds_nothing(folder: Path) -> None:
    write(folder, "a", "  mode: off\n  rules: [{name: quiet, mute: one}]\n")
    write(folder, "b", MUTE_ACME)
    made = source(folder)
    assert not made.for_request({"tenant": "globex"}, "r").hooks
    assert names(made.for_request({"tenant": "acme"}, "r")) == {("b", "quiet")}


def test_a_member_keeps_its_own_mode(folder: Path) -> None:
    write(folder, "a", "  mode: audit\n  rules: [{name: quiet, mute: one}]\n")
    write(folder, "b", STYLE)
    modes = {rule.name: str(rule.mode) for rule in source(folder).for_request({}, "r").rules}
    assert modes == {"quiet": "audit", "push": "enforce"}


CONFLICTS = {
    "clamp and clamp": (
        "  rules: [{name: low, clamp: one, max: 1.0}]\n",
        "  rules: [{name: high, clamp: one, min: 2.0}]\n",
        "b.yaml:9:11: two policies of the set both change the feature one of layer 1; "
        'found "clamp" by b, rule high; expected one rule for it; there is "clamp" at',
    ),
    "mute and scale": (
        "  rules: [{name: quiet, mute: one}]\n",
        "  selector: {tenant: acme}\n  rules: [{name: half, scale: one, factor: 0.5}]\n",
        'there is "mute" at',
    ),
    "dose limits": (
        "  limits: {dose: {max: 1.0, on_excess: clamp}}\n" + STYLE,
        "  limits: {dose: {max: 1.0, on_excess: abort}}\n" + STYLE,
        "two policies of the set disagree on what happens above the dose limit",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_policies_that_contradict_each_other_are_refused_at_load(folder: Path, case: str) -> None:
    first, second, message = CONFLICTS[case]
    write(folder, "a", first)
    write(folder, "b", second)
    with pytest.raises(PolicyErrors) as refused:
        source(folder)
    assert message in str(refused.value)


def test_two_policies_of_one_name_are_refused(folder: Path) -> None:
    write(folder, "a", STYLE, file="x")
    write(folder, "a", STYLE, file="y")
    with pytest.raises(
        PolicyErrors, match=r"y\.yaml:3:18: another policy of the set has this name"
    ):
        source(folder)


NO_CONFLICTS = {
    "selectors apart": (MUTE_ACME, MUTE_OTHERS),
    "phases apart": (
        "  rules: [{name: p, mute: one, when: {phase: prompt}}]\n",
        "  rules: [{name: g, mute: one, when: {phase: generation}}]\n",
    ),
    "one only watches": (
        "  rules: [{name: p, mute: one}]\n",
        "  mode: audit\n  rules: [{name: q, mute: one}]\n",
    ),
}


@pytest.mark.parametrize("case", NO_CONFLICTS)
def test_policies_that_never_meet_are_no_conflict(folder: Path, case: str) -> None:
    for name, spec in zip("ab", NO_CONFLICTS[case], strict=True):
        write(folder, name, spec)
    assert len(source(folder).policies) == 2


def test_every_error_of_every_policy_is_reported_at_once(folder: Path) -> None:
    """Behaviour 10: all or nothing over a directory."""
    write(folder, "a", "  rules: [{name: quiet, mute: nothing}]\n")
    write(folder, "b", STYLE)
    write(folder, "c", "  rules: [{name: quiet, mutes: one}]\n")
    with pytest.raises(PolicyErrors) as refused:
        load_policies(folder)
    assert {Path(str(e.location.file)).name for e in refused.value.errors if e.location} == {
        "a.yaml",
        "c.yaml",
    }


def test_an_empty_directory_is_no_wish_for_no_policies(folder: Path) -> None:
    with pytest.raises(PolicyErrors, match="no policy in the directory"):
        load_policies(folder)


def test_what_compiled_does_not_change_with_its_files(folder: Path) -> None:
    write(folder, "a", MUTE_ACME)
    write(folder, "b", STYLE)
    made = source(folder)
    for file in folder.iterdir():
        file.unlink()
    assert names(made.for_request({"tenant": "acme"}, "r")) == {("a", "quiet"), ("b", "push")}


EXEMPT = (
    "  rules: [{name: quiet, mute: one}]\n"
    "  exceptions: [{selector: {tenant: acme}, rules: [quiet], owner: ops, until: 2026-06-01}]\n"
)


def test_behaviour_20_exceptions_lapse_and_are_counted_apart(folder: Path) -> None:
    write(folder, "a", EXEMPT)
    write(folder, "b", STYLE)
    acme = {"tenant": "acme"}
    before, after = source(folder), source(folder, date(2026, 6, 2))
    assert names(before.for_request(acme, "r")) == {("b", "push")}
    assert before.exempted(acme) == ("a/quiet",)
    assert before.exempted({"tenant": "globex"}) == ()
    assert names(after.for_request(acme, "r")) == {("a", "quiet"), ("b", "push")}
    assert after.exempted(acme) == ()


@pytest.mark.parametrize("key", ["owner", "until"])
def test_behaviour_20_an_exception_needs_an_owner_and_an_expiry(folder: Path, key: str) -> None:
    given = {"owner": "owner: ops, ", "until": ", until: 2026-06-01"}[key]
    path = write(folder, "a", EXEMPT.replace(given, ""))
    with pytest.raises(PolicyErrors, match=f'missing key "{key}"'):
        load_policy(path)


def test_explain_shows_what_a_request_with_these_labels_gets(folder: Path, scope: Scope) -> None:
    write(folder, "a", EXEMPT.replace("2026-06-01", "2999-01-01"))
    write(folder, "b", MUTE_ACME.replace("mute: one", "mute: two"))
    write(folder, "c", STYLE)
    shown = json.loads(scope("explain", folder, "--labels", "tenant=acme", "--json").stdout)
    rules = {(r["policy"], r["rule"]) for layer in shown["layers"] for r in layer["rules"]}
    assert rules == {("b", "quiet"), ("c", "push")}
    assert shown["exempted"] == ["a/quiet"]
    other = scope("explain", folder, "--labels", "tenant=globex")
    assert "a: quiet" in other.stdout
    assert "b: quiet" not in other.stdout
    everything = scope("explain", folder)
    assert {name for name in ("a: quiet", "b: quiet", "c: push") if name in everything.stdout} == {
        "a: quiet",
        "b: quiet",
        "c: push",
    }


def test_a_source_from_another_process_still_compiles_what_requests_get(folder: Path) -> None:
    write(folder, "a", MUTE_ACME)
    write(folder, "b", STYLE)
    made = ProgramSource(load_policies(folder), shape_of(folder))
    taken = pickle.loads(worker.pack(made)[worker.LENGTH.size :])
    taken.take_files(made.packed_files())
    for labels in ({}, {"tenant": "acme"}):
        assert taken.for_request(labels, "r").digest == made.for_request(labels, "r").digest


def test_however_many_parts_requests_get_only_so_many_stay_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts by request make as many parts as there are subsets of their rules."""
    rules = "".join(
        f"    - {{name: r{n}, amplify: style, alpha: 0.0{n + 1}, unit: residual, "
        "rollout: {percent: 50, by: request}}\n"
        for n in range(6)
    )
    write(folder, "a", f"  rules:\n{rules}")
    monkeypatch.setattr("scope_runtime.select.MAX_PROGRAMS", 4)
    source = ProgramSource(load_policies(folder), shape_of(folder))
    first = {n: source.for_request({}, f"request {n}").digest for n in range(40)}
    assert len(set(first.values())) > 4
    assert len(source._programs) <= 4
    assert {n: source.for_request({}, f"request {n}").digest for n in range(40)} == first
