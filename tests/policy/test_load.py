from __future__ import annotations

from pathlib import Path

import pytest

from scope_runtime.errors import Location, PolicyErrors
from scope_runtime.policy import load_policy, parse_policy, policy_files
from scope_runtime.policy.model import (
    EMBEDDING,
    Action,
    AlertSpec,
    Apply,
    Condition,
    Gate,
    GateKind,
    GroupFeature,
    Mode,
    ModelRequirement,
    OnExcess,
    Op,
    PackFeature,
    Phase,
    Positions,
    PositionsOf,
    Rollout,
    Severity,
    Unit,
    VectorFeature,
    Watch,
)
from tests.policy.cases import FOLDER

HEAD = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\n"

FULL = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: english-only, owner: llm-ops, generation: 7, description: keep replies in English}
spec:
  model: {architecture: qwen3, layers: 28, width: 2048}
  mode: off
  apply: next-request
  selector: {tenant: [acme, globex], app: chat}
  features:
    a: {pack: packs/a.gguf, layer: 20, id: 6159, gate: {kind: threshold, threshold: 1e-3}}
    b: {pack: ./packs/a.gguf, layer: embedding, id: 811, gate: topk}
    ab: {group: [a, b]}
    style: {vector: vectors/v.gguf, layers: [3, 4]}
  limits: {dose: {max: 0.7, on_excess: abort}}
  rules:
    - {name: up, amplify: [style, a], alpha: 0.15, unit: residual, rollout: {percent: 10, by: tenant}}
    - {name: quiet, mode: audit, mute: ab, when: {phase: generation, positions: {from: 2, of: answer}}}
    - {name: range, clamp: a, max: 4, when: {feature: b, below: 2, hysteresis: 0.5, for: 2 tokens, watch: sum}}
    - {name: half, scale: b, factor: 0.5}
    - {name: away, ablate: [a, style]}
    - name: seen
      alert: ab
      above: 8
      for: 3 tokens
      keep_firing_for: 1 token
      watch: sum
      severity: critical
      actions: [webhook, abort, {switch_on: half}]
    - {name: plain, alert: a, below: 0}
  exceptions: [{selector: {tenant: acme}, rules: [up, quiet], owner: ops, until: 2027-01-31}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("packs/a.gguf", "vectors/v.gguf"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path


def test_everything_that_a_policy_can_say(folder: Path) -> None:
    path = folder / "policy.yaml"
    path.write_text(FULL)
    policy = load_policy(path)

    def at(line: int, column: int) -> Location:
        return Location(str(path), line, column)

    assert (policy.name, policy.owner, policy.generation) == ("english-only", "llm-ops", 7)
    assert policy.model == ModelRequirement("qwen3", 28, 2048, at(5, 10))
    assert (policy.mode, policy.apply) == (Mode.OFF, Apply.NEXT_REQUEST)
    assert policy.selector == (("app", ("chat",)), ("tenant", ("acme", "globex")))
    assert policy.features == (
        PackFeature("a", "packs/a.gguf", 20, 6159, Gate(GateKind.THRESHOLD, 0.001), at(10, 5)),
        PackFeature("b", "packs/a.gguf", EMBEDDING, 811, Gate(GateKind.TOPK), at(11, 5)),
        GroupFeature("ab", ("a", "b"), at(12, 5)),
        VectorFeature("style", "vectors/v.gguf", (3, 4), at(13, 5)),
    )
    assert policy.dose_limit is not None
    assert (policy.dose_limit.max, policy.dose_limit.on_excess) == (0.7, OnExcess.ABORT)
    up, quiet, span, half, away, seen, plain = policy.rules
    assert (up.op, up.targets, up.alpha, up.unit) == (
        Op.AMPLIFY,
        ("style", "a"),
        0.15,
        Unit.RESIDUAL,
    )
    assert up.rollout == Rollout(10.0, "tenant")
    assert up.mode is None
    assert (quiet.op, quiet.mode, quiet.unit) == (Op.MUTE, Mode.AUDIT, None)
    assert quiet.when.phase is Phase.GENERATION
    assert quiet.when.positions == Positions(2, None, PositionsOf.ANSWER)
    assert (span.op, span.min, span.max) == (Op.CLAMP, None, 4.0)
    assert span.when.condition == Condition("b", None, 2.0, 0.5, 2, Watch.SUM, at(18, 55))
    assert (half.op, half.factor, half.location) == (Op.SCALE, 0.5, at(19, 7))
    assert (away.op, away.alert) == (Op.ABLATE, None)
    assert seen.alert == AlertSpec(
        8.0, None, 3, 1, Watch.SUM, Severity.CRITICAL, (Action.WEBHOOK, Action.ABORT), ("half",)
    )
    assert plain.alert == AlertSpec(
        None, 0.0, 1, 0, Watch.MAX, Severity.WARNING, (Action.LOG, Action.METRIC), ()
    )
    (exception,) = policy.exceptions
    assert exception.selector == (("tenant", ("acme",)),)
    assert (exception.rules, exception.owner) == (("up", "quiet"), "ops")
    assert exception.until == "2027-01-31"


def test_what_is_not_said_has_its_default() -> None:
    policy = parse_policy(HEAD + "spec: {}\n", file="p.yaml")
    assert (policy.mode, policy.apply, policy.model) == (Mode.ENFORCE, Apply.NEXT_TOKEN, None)
    assert (policy.selector, policy.dose_limit) == (None, None)
    assert (policy.features, policy.rules, policy.exceptions) == ((), (), ())


def test_amplify_is_absolute_unless_told_otherwise() -> None:
    policy = parse_policy(
        HEAD + "spec: {features: {v: {vector: v.gguf}}, rules: [{name: r, amplify: v, alpha: 1}]}",
        file="p.yaml",
        files=False,
    )
    assert policy.rules[0].unit is Unit.ABSOLUTE


def test_an_alert_may_be_conditioned_on_any_layer_up_to_its_deepest() -> None:
    text = HEAD + (
        "spec:\n  features:\n"
        "    low: {pack: a.gguf, layer: 1, id: 1}\n"
        "    high: {pack: a.gguf, layer: 9, id: 1}\n"
        "    middle: {pack: a.gguf, layer: 5, id: 1}\n"
        "  rules: [{name: r, OP: [low, high], above: 1, when: {feature: middle, above: 1}}]\n"
    )
    parse_policy(text.replace("OP", "alert"), file="p.yaml", files=False)
    with pytest.raises(PolicyErrors, match="known only after"):
        parse_policy(
            text.replace("OP", "mute").replace(" above: 1,", "", 1), file="p.yaml", files=False
        )


def test_a_policy_without_its_files_loads_only_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(FULL)
    with pytest.raises(PolicyErrors) as refused:
        load_policy(path)
    assert [error.message for error in refused.value.errors] == ["no such file", "no such file"]
    assert len(load_policy(path, files=False).rules) == 7


def test_the_files_of_a_directory_of_policies(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: links into a dated directory that is itself behind a link."""
    dated = tmp_path / "..2027_01_31"
    dated.mkdir()
    (tmp_path / "..data").symlink_to(dated.name)
    for name in ("b.yaml", "a.yml", "a.test.yaml", "notes.txt"):
        (dated / name).write_text(HEAD + "spec: {}\n")
        (tmp_path / name).symlink_to(f"..data/{name}")
    (tmp_path / ".hidden.yaml").touch()
    (tmp_path / "folder.yaml").mkdir()
    found = policy_files(tmp_path)
    assert [path.name for path in found] == ["a.yml", "b.yaml"]
    assert [load_policy(path).name for path in found] == ["p", "p"]


def test_one_run_shows_the_errors_of_every_stage_in_file_order() -> None:
    said = (FOLDER / "many-errors.yaml").read_text().split("want_error")[1]
    stages = [
        "unknown key",
        "no such file",
        "not a finite number",
        "unknown feature",
        "min is above",
    ]
    assert [said.index(stage) for stage in stages] == sorted(said.index(stage) for stage in stages)
