"""Alerts that switch rules on: never stronger than the alert, never without it; and what reuse depends on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.compile import check_against_packs, compile_policy
from scope_runtime.errors import CompileError
from scope_runtime.policy import load_policy
from scope_runtime.policy.lint import lint
from scope_runtime.policy.model import Policy
from scope_runtime.program import Program
from scope_runtime.types import ModelShape
from tests.support.random_pack import make_random_pack, write_control_vector

Write = Callable[[str], Policy]
SHAPE = ModelShape("qwen3", 4, 16)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function from rules (YAML) to the loaded policy, beside a random pack of 4 layers."""
    pack = make_random_pack(SHAPE, tmp_path)

    def written(rules: str) -> Policy:
        file = tmp_path / "p.yaml"
        file.write_text(
            "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\nspec:\n"
            f"  features:\n    f: {{pack: {pack.pack_name}, layer: 1, id: 3}}\n"
            f"    late: {{pack: {pack.pack_name}, layer: 3, id: 3}}\n  rules:\n{rules}"
        )
        return load_policy(file)

    return written


ALERT = "    - {name: a, MODEalert: f, above: 1, actions: [{switch_on: b}]}\n"
CHAIN = (
    "    - {name: b, alert: f, above: 2, actions: [{switch_on: c}]}\n"
    "    - {name: c, amplify: f, alpha: 1, unit: residual}\n"
)


def modes(program: Program) -> dict[str, str]:
    return {rule.name: str(rule.mode) for rule in program.rules}


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("", {"a": "enforce", "b": "enforce", "c": "enforce"}),
        ("mode: audit, ", {"a": "audit", "b": "audit", "c": "audit"}),
        ("mode: off, ", {}),
    ],
)
def test_a_switched_rule_is_no_stronger_than_its_alert(
    write: Write, mode: str, wanted: dict[str, str]
) -> None:
    policy = write(ALERT.replace("MODE", mode) + CHAIN)
    assert modes(check_against_packs(policy)) == wanted
    warned = {each.code for each in lint(policy, date(2026, 1, 1))}
    assert ("switch-without-effect" in warned) == bool(mode)


@pytest.mark.parametrize("kept", [{"b", "c"}, {"c"}, {"a", "c"}])
def test_without_its_alert_a_rule_is_left_out(write: Write, kept: set[str]) -> None:
    """A rollout or an exception leaves the alert out for some request."""
    policy = write(ALERT.replace("MODE", "") + CHAIN)
    program = compile_policy(policy, SHAPE, rules=frozenset(kept))
    assert set(modes(program)) == kept - {"b", "c"}


@pytest.mark.parametrize(
    ("rules", "depends"),
    [
        ("    - {name: a, alert: f, above: 1}\n", False),
        ("    - {name: a, alert: late, above: 1}\n", True),
        ("    - {name: a, alert: f, above: 1, when: {phase: generation}}\n", True),
        ("    - {name: a, mute: late}\n", False),
        ("    - {name: a, mute: late, when: {feature: late, above: 1}}\n", True),
        ("    - {name: a, mute: f, when: {positions: {from: 2, of: answer}}}\n", True),
    ],
)
def test_what_depends_on_where_the_prompt_ends(write: Write, rules: str, depends: bool) -> None:
    """Alerts too: a state that a reused prefix brings along must be the one that it would reach afresh."""
    assert check_against_packs(write(rules)).phase_dependent is depends


def test_a_direction_of_no_length_is_refused(tmp_path: Path) -> None:
    """Under every unit: it would be on record as steering, and steer nothing."""
    write_control_vector(tmp_path / "v.gguf", {1: np.zeros(16, np.float32)})
    file = tmp_path / "p.yaml"
    file.write_text(
        "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\nspec:\n"
        "  features: {f: {vector: v.gguf}}\n  rules: [{name: a, amplify: f, alpha: 1}]\n"
    )
    with pytest.raises(CompileError, match="has no length, so amplify adds nothing"):
        compile_policy(load_policy(file), SHAPE)
