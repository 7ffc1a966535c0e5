"""A policy, its packs and its vectors are held against the model that they are to steer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scope_runtime.compile import assumed_shape, compile_policy
from scope_runtime.errors import ModelError
from scope_runtime.packs import read_pack, write_pack
from scope_runtime.policy import load_policy
from scope_runtime.resolve import load_artefacts
from scope_runtime.types import ModelShape
from tests.conftest import Tiny


@pytest.fixture
def policy(tiny: Tiny, tmp_path: Path) -> Path:
    for name in ("pack.gguf", "vector.gguf", "policy.yaml"):
        shutil.copy(tiny.policy.with_name(name), tmp_path / name)
    return tmp_path / "policy.yaml"


def shape_of(policy: Path) -> ModelShape:
    loaded = load_policy(policy)
    return assumed_shape(loaded, load_artefacts(loaded))


def refused(policy: Path, shape: ModelShape) -> str:
    with pytest.raises(ModelError) as caught:
        compile_policy(load_policy(policy), shape)
    assert caught.value.location is not None
    assert caught.value.location.line > 0
    return str(caught.value).removeprefix(f"{policy}:")


def test_behaviour_8_a_policy_that_names_another_model_is_refused(policy: Path) -> None:
    shape = shape_of(policy)
    text = policy.read_text()
    for key, other, have in (
        ("architecture", "llama", shape.architecture),
        ("layers", shape.n_layer + 1, shape.n_layer),
        ("width", shape.n_embd + 1, shape.n_embd),
    ):
        policy.write_text(text.replace("spec:\n", f"spec:\n  model: {{{key}: {other}}}\n", 1))
        said = refused(policy, shape)
        assert "the policy is for another model" in said
        assert f"found a model with {key} {have}; expected {other}" in said


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda s: replace(s, architecture="llama"), "architecture"),
        (lambda s: replace(s, n_layer=s.n_layer + 1), "layers"),
        (lambda s: replace(s, n_embd=s.n_embd * 2), "width"),
    ],
)
def test_behaviour_8_a_pack_of_another_model_is_refused(
    policy: Path, change: Callable[[ModelShape], ModelShape], key: str
) -> None:
    said = refused(policy, change(shape_of(policy)))
    assert "pack pack.gguf was made for another model" in said
    assert f"found a model with {key} " in said


def test_behaviour_8_a_pack_that_was_exchanged_for_another_saes_is_refused(policy: Path) -> None:
    """Same name, another SAE: its features are others, and its digest is another revision."""
    shape = shape_of(policy)
    before = compile_policy(load_policy(policy), shape)
    pack = read_pack(policy.with_name("pack.gguf"))
    other = replace(pack.model, architecture="gemma3")
    write_pack(policy.with_name("pack.gguf"), other, pack.layers.values())
    said = refused(policy, shape)
    assert f"found a model with architecture {shape.architecture}" in said
    assert "expected architecture gemma3" in said
    write_pack(policy.with_name("pack.gguf"), pack.model, pack.layers.values(), [("note", "x")])
    assert compile_policy(load_policy(policy), shape).revision != before.revision
