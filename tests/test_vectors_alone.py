"""What a control vector cannot carry is refused where it stands, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scope_runtime.errors import PolicyErrors, ScopeError
from scope_runtime.lifecycle.build import Bench, build
from scope_runtime.lifecycle.source import Source
from scope_runtime.policy.load import load_policies
from scope_runtime.policy.revision import FileDigests
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from scope_runtime.vectors_alone import check_vectors_alone
from tests.conftest import ROOT
from tests.support.random_model import SHAPES
from tests.support.random_pack import make_random_pack

SHAPE = ModelShape("qwen3", 4, 256)
BENCH = Bench(SHAPE, frozenset(range(SHAPE.n_layer)), vectors_alone=True)
HEAD = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: p}
spec:
  model: {architecture: qwen3, layers: 4, width: 256}
"""
FEATURES = """\
  features:
    f: {pack: packs/tiny-qwen3.gguf, layer: 3, id: 767}
    g: {pack: packs/tiny-qwen3.gguf, layer: 2, id: 685}
"""
LINE = HEAD.count("\n") + FEATURES.count("\n") + 2  # of the first rule

RULES = {
    "{name: r, mute: f}": "mute of rule r: it goes by each token's residual",
    "{name: r, scale: f, factor: 0.5}": "scale of rule r: it goes by each token's residual",
    "{name: r, clamp: f, max: 2}": "clamp of rule r: it goes by each token's residual",
    "{name: r, ablate: f}": "ablate of rule r: it goes by each token's residual",
    "{name: r, alert: f, above: 1}": "the alert of rule r: nothing is measured",
    "{name: r, amplify: f, alpha: 1, unit: residual}": "unit: residual of rule r",
    "{name: r, amplify: f, alpha: 1, mode: audit}": "mode: audit of rule r",
    "{name: r, amplify: f, alpha: 1, when: {phase: generation}}": "when.phase of rule r",
    "{name: r, amplify: f, alpha: 1, when: {positions: {from: 1}}}": "when.positions of rule r",
    "{name: r, amplify: f, alpha: 1, when: {feature: g, above: 1}}": "the condition of rule r",
    "{name: r, amplify: f, alpha: 1, rollout: {percent: 50, by: tenant}}": "rollout of rule r",
}
"""Each by itself, and what is said of it."""

SPECS = {
    "  mode: audit\n": ("mode: audit: nothing is measured", 3),
    "  selector: {tenant: acme}\n": ("selector: one control vector is for every request", 3),
    "  limits: {dose: {max: 3, on_excess: clamp}}\n": ("limits.dose: nothing is measured", 6),
    "  exceptions:\n    - {selector: {tenant: a}, rules: [push], owner: o, until: 2999-01-01}\n": (
        "an exception: one control vector is for every request",
        7,
    ),
}
PLAIN = "    - {name: push, amplify: f, alpha: 30}\n"


def built(folder: Path, rules: str, spec: str = "", head: str = HEAD) -> ProgramSource:
    """As the lifecycle builds it, at a start and at a reload."""
    if not (folder / "packs").exists():
        shutil.copytree(ROOT / "policies" / "packs", folder / "packs")
    (folder / "p.yaml").write_text(head + spec + FEATURES + "  rules:\n" + rules, encoding="utf-8")
    return build(Source(folder), BENCH, FileDigests()).result()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_refused_where_it_stands(rule: str, tmp_path: Path) -> None:
    with pytest.raises(ScopeError) as caught:
        built(tmp_path, f"    - {rule}\n")
    error = caught.value
    assert error.message.startswith(
        f"llama.cpp's control vector cannot carry {RULES[rule].partition(' of rule')[0]}"
    )
    assert RULES[rule] in error.message
    assert error.location is not None
    assert error.location.file.endswith("p.yaml")
    assert (error.location.line, error.location.column) == (LINE, 7)


@pytest.mark.parametrize("spec", SPECS)
def test_a_part_of_a_policy_is_refused(spec: str, tmp_path: Path) -> None:
    says, line = SPECS[spec]
    with pytest.raises(ScopeError) as caught:
        built(tmp_path, PLAIN, spec)
    assert caught.value.message == f"llama.cpp's control vector cannot carry {says}"
    assert caught.value.location is not None
    assert caught.value.location.line == line


def test_all_of_it_is_told_at_once(tmp_path: Path) -> None:
    rules = [rule.replace("name: r", f"name: r{n}") for n, rule in enumerate(RULES)]
    whole = [rule for rule in rules if "amplify" in rule]  # others contradict each other
    with pytest.raises(PolicyErrors) as caught:
        built(tmp_path, "".join(f"    - {rule}\n" for rule in whole))
    places = [error.location.line for error in caught.value.errors if error.location is not None]
    assert places == list(range(LINE, LINE + len(whole)))


def test_what_stays_is_in_the_vector_and_nothing_in_the_hook(tmp_path: Path) -> None:
    rules = (
        PLAIN + "    - {name: less, amplify: g, alpha: -2}\n    - {name: no, mute: f, mode: off}\n"
    )
    off = HEAD.replace("name: p", "name: q") + "  mode: off\n  selector: {a: b}\n" + FEATURES
    (tmp_path / "q.yaml").write_text(off + "  rules:\n    - {name: no, mute: f}\n", "utf-8")
    source = built(tmp_path, rules)
    assert not source.program.hooks
    assert sorted(source.program.control_vectors) == [2, 3]
    assert source.for_request({"a": "b"}, "1").digest == source.program.digest


def test_block_0_is_refused(tmp_path: Path) -> None:
    """llama.cpp refuses a direction for it, and the compiler would leave it to the hook."""
    shape = SHAPES["qwen3"]
    pack = make_random_pack(shape, tmp_path)
    (tmp_path / "p.yaml").write_text(
        "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\nspec:\n  features:\n"
        f"    f: {{pack: {pack.pack_name}, layer: 0, id: 1}}\n  rules:\n{PLAIN}",
        encoding="utf-8",
    )
    of = ModelShape(shape.architecture, shape.n_layer, shape.n_embd)
    source = ProgramSource(
        load_policies(tmp_path / "p.yaml"), of, control_vector_layers=frozenset(range(of.n_layer))
    )
    with pytest.raises(ScopeError, match=r"a feature of rule push: llama\.cpp adds"):
        check_vectors_alone(source)
