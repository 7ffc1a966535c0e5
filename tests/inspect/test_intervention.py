"""The short form of a policy: what it writes is what the loader reads, and what the model does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scope_runtime import Runtime
from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.inspect import Intervention, Reader
from scope_runtime.packs import read_pack
from scope_runtime.policy.load import load_policy
from tests.conftest import ROOT
from tests.inspect.conftest import ENGLISH_ONLY, MODEL, PACK, QUESTION


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "packs").mkdir()
    shutil.copy(PACK, tmp_path / "packs" / "m.gguf")
    return tmp_path


def test_it_writes_a_policy(folder: Path) -> None:
    pack = folder / "packs" / "m.gguf"
    built = (
        Intervention("mine")
        .activate(f"{pack}:2:459", 0.8)
        .suppress((pack, 3, 767))
        .suppress((pack, 3, 843), 0.25)
        .activate((str(pack), 3, 767), -2, unit="absolute")
        .during("generation")
    )
    policy = built.write(folder / "mine.yaml")
    assert policy == load_policy(folder / "mine.yaml")
    assert built.to_yaml(folder) == (folder / "mine.yaml").read_text(encoding="utf-8")
    assert [(f.name, f.pack, f.layer, f.id) for f in policy.features] == [  # type: ignore[union-attr]
        ("f2-459", "packs/m.gguf", 2, 459),
        ("f3-767", "packs/m.gguf", 3, 767),
        ("f3-843", "packs/m.gguf", 3, 843),
    ]
    rules = [(rule.name, str(rule.op), rule.alpha, str(rule.unit)) for rule in policy.rules]
    assert rules[0] == ("amplify-f2-459", "amplify", 0.8, "residual")
    assert [name for name, *_ in rules[1:]] == ["mute-f3-767", "scale-f3-843", "amplify-f3-767"]
    assert policy.rules[2].factor == 0.75
    assert (rules[3][2], rules[3][3]) == (-2, "absolute")
    assert {str(rule.when.phase) for rule in policy.rules if rule.when} == {"generation"}


def test_every_call_gives_a_new_one() -> None:
    start = Intervention()
    one, other = start.suppress("p.gguf:1:2"), start.activate("p.gguf:1:3", 1)
    assert (start, Intervention()) == (Intervention(), start)
    assert "1-2" in one.to_yaml()
    assert "1-2" not in other.to_yaml()
    twice = one.suppress("p.gguf:1:2", 0.5).suppress("p.gguf:1:2", 0.5)
    names = [line.split()[-1] for line in twice.to_yaml().splitlines() if "- name:" in line]
    assert names == ["mute-f1-2", "scale-f1-2", "scale-f1-2-2"]


def test_two_packs_and_the_embedding() -> None:
    text = Intervention().suppress("a.gguf:embedding:3").suppress("b.gguf:embedding:3").to_yaml()
    assert "fembedding-3-2:\n      pack: b.gguf\n      layer: embedding\n" in text


def test_suppressing_what_a_policy_mutes_gives_its_answer(folder: Path) -> None:
    pack = folder / "packs" / "m.gguf"
    built = Intervention().during("generation")
    for id in (767, 843, 185, 28, 459):
        built = built.suppress((pack, 3, id))
    built.write(folder / "mine.yaml")
    with Runtime(MODEL, ENGLISH_ONLY, policy_root=ROOT, n_ctx=128, n_threads=1) as runtime:
        expected = runtime.chat(QUESTION, max_tokens=30, temperature=0.0).text
        runtime.set_policy(None)
        unsteered = runtime.chat(QUESTION, max_tokens=30, temperature=0.0).text
    with Runtime(MODEL, folder / "mine.yaml", n_ctx=128, n_threads=1) as runtime:
        assert runtime.chat(QUESTION, max_tokens=30, temperature=0.0).text == expected != unsteered


def test_activating_adds_that_share_of_the_residual(folder: Path) -> None:
    Intervention().activate((folder / "packs" / "m.gguf", 2, 459), 0.5).write(folder / "p.yaml")
    with Reader(MODEL, folder / "p.yaml", n_ctx=64, n_threads=1) as reader:
        reading = reader.text(QUESTION, [2])
    layer = read_pack(PACK).layer(2)
    direction = layer.dec[layer.row(459)]
    h = reading.layers[2]
    unit = direction / np.linalg.norm(direction)
    expected = h + 0.5 * np.linalg.norm(h, axis=1, keepdims=True) * unit
    np.testing.assert_allclose(reading.after[2], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda i: i.suppress("p.gguf:1"),
            "no name of a feature; found 'p.gguf:1'; expected PACK:LAYER:ID, such as packs/model.gguf:20:6159, "
            "or the three as a tuple",
        ),
        (lambda i: i.suppress(("p.gguf", 1, -2)), "no name of a feature; found ('p.gguf', 1, -2)"),
        (lambda i: i.activate("p.gguf:1:2", 0), "a strength of 0 does nothing; found 0"),
        (
            lambda i: i.suppress("p.gguf:1:2", 1.5),
            "a feature is suppressed by a share of itself; found 1.5; expected above 0, at most 1",
        ),
        (lambda i: i.suppress("p.gguf:1:2", float("nan")), "a feature is suppressed by a share"),
        (
            lambda i: i.to_yaml(),
            "the intervention does nothing. activate or suppress a feature",
        ),
        (
            lambda i: i.activate("p.gguf:1:2", 1, unit="loud").to_yaml(),
            'intervention.yaml:15:13: unknown value (at spec.rules[0].unit); found "loud"',
        ),
        (
            lambda i: i.activate("p.gguf:1:2", float("inf")).to_yaml(),
            "intervention.yaml:14:14: not",
        ),
        (lambda i: i.activate("p.gguf:1:2", 1).during("noon").to_yaml(), "intervention.yaml:17:16"),
        (lambda i: i.activate("../p.gguf:1:2", 1).to_yaml(), "intervention.yaml:8:13: the path"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ScopeError) as refused:
        call(Intervention())
    assert str(refused.value).startswith(message)


def test_nothing_is_written_that_the_loader_refuses(folder: Path) -> None:
    with pytest.raises(ScopeError, match="no such file"):
        Intervention().suppress((folder / "gone.gguf", 1, 2)).write(folder / "p.yaml")
    outside = Intervention().suppress((folder / "packs" / "m.gguf", 2, 459))
    below = folder / "below"
    below.mkdir()
    with pytest.raises(ScopeError, match="leads out of the policy's root"):
        outside.write(below / "p.yaml")
    assert not (folder / "p.yaml").exists()
    assert not list(below.iterdir())
    policy = outside.write(below / "p.yaml", root=str(folder))
    assert policy.features[0].pack == "packs/m.gguf"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="cannot be written"):
        outside.write(folder / "none" / "p.yaml", root=str(folder))
