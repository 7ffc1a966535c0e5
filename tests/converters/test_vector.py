"""Control vectors of features and of other vectors: numbers, recipes, replay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.features import FeatureRequest
from converters.vector import (
    VectorOptions,
    combined_vector,
    name_sources,
    replay,
    vector_of_features,
)
from scope_runtime.errors import PackError, UsageError
from scope_runtime.packs import PackLayer, PackModel, write_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.vectors import read_control_vector, write_control_vector

WIDTH = 8
N_LAYER = 4


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An SAE set, two vectors and a pack."""
    torch.manual_seed(0)
    sae = tmp_path / "in" / "sae"
    sae.mkdir(parents=True)
    shapes = {"W_enc": (32, WIDTH), "W_dec": (WIDTH, 32), "b_enc": (32,), "b_dec": (WIDTH,)}
    for layer in range(N_LAYER):
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        torch.save(tensors, sae / f"layer{layer}.sae.pt")
    config = {"d_model": WIDTH, "d_sae": 32, "k": 3, "num_layers": N_LAYER}
    (sae / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    for name, layers in (("a", (1, 2)), ("b", (2, 3))):
        rows = {n: rng.standard_normal(WIDTH).astype(np.float32) for n in layers}
        write_control_vector(sae.parent / f"{name}.gguf", rows, model_hint="qwen3")
    write_pack(sae.parent / "pack.gguf", PackModel("qwen3", N_LAYER, WIDTH), [pack_layer(rng, 2)])
    return sae.parent


def pack_layer(rng: np.random.Generator, layer: int) -> PackLayer:
    enc, dec = rng.standard_normal((2, 2, WIDTH)).astype(np.float32)
    ids = np.array([5, 9])
    return PackLayer(layer, ids, ("", ""), enc, np.zeros(2, np.float32), dec, GateKind.RELU)


def decoder(folder: Path, layer: int, id: int) -> np.ndarray:
    loaded = torch.load(folder / "sae" / f"layer{layer}.sae.pt", weights_only=True)
    return loaded["W_dec"][:, id].numpy()


def test_a_features_direction_at_its_own_layer(folder: Path, tmp_path: Path) -> None:
    wanted = [FeatureRequest(2, 7), FeatureRequest(3, 1), FeatureRequest(2, 8)]
    vector = vector_of_features(
        folder / "sae", wanted, tmp_path / "v.gguf", options=VectorOptions(alpha=4), model_hint="x"
    )
    assert list(vector.layers) == [2, 3]
    assert np.allclose(vector.layers[3], 4 * decoder(folder, 3, 1), atol=1e-6)
    both = decoder(folder, 2, 7) + decoder(folder, 2, 8)
    assert np.allclose(vector.layers[2], 4 * both, atol=1e-5)
    facts = dict(vector.metadata)
    assert facts["scope.features"] == "2:7, 3:1, 2:8"
    assert facts["scope.alpha"] == "4"
    assert vector.model_hint == "x"
    assert str(tmp_path) not in facts["scope.recipe"]


def test_a_features_direction_spread_over_layers(folder: Path, tmp_path: Path) -> None:
    vector = vector_of_features(
        folder / "sae", [FeatureRequest(2, 7)], tmp_path / "v.gguf", layers=[3, 1]
    )
    assert list(vector.layers) == [1, 3]
    assert np.array_equal(vector.layers[1], decoder(folder, 2, 7))


def test_a_packs_feature(folder: Path, tmp_path: Path) -> None:
    vector = vector_of_features(folder / "pack.gguf", [FeatureRequest(2, 9)], tmp_path / "v.gguf")
    assert vector.model_hint == "qwen3"
    rng = np.random.default_rng(0)
    rng.standard_normal((4, WIDTH))
    assert np.array_equal(vector.layers[2], pack_layer(rng, 2).dec[1])


def test_a_combination_kept_clear_of_a_packs_features(folder: Path, tmp_path: Path) -> None:
    """Style moves, the protected feature's activation does not: its encoder row counts as well."""
    sources = {"a": folder / "a.gguf", "b": folder / "b.gguf"}
    options = VectorOptions(orthogonal_to=(folder / "pack.gguf",), normalise=True, alpha=2.0)
    vector = combined_vector(sources, "0.7*a - 0.2*b", tmp_path / "v.gguf", options=options)
    a, b = (read_control_vector(folder / f"{name}.gguf").layers for name in "ab")
    assert np.allclose(vector.layers[1], 2 * a[1] / np.linalg.norm(a[1]), atol=1e-6)
    assert np.allclose(vector.layers[3], -2 * b[3] / np.linalg.norm(b[3]), atol=1e-6)
    rng = np.random.default_rng(0)
    rng.standard_normal((4, WIDTH))
    protected = pack_layer(rng, 2)
    for rows in (protected.enc, protected.dec):
        assert np.abs(rows @ vector.layers[2]).max() < 1e-6
    assert np.linalg.norm(vector.layers[2]) == pytest.approx(2, rel=1e-6)


def test_replaying_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    options = VectorOptions((folder / "a.gguf",), (folder / "pack.gguf",), True, 1.5)
    sources = {"a": folder / "a.gguf", "x": folder / "b.gguf"}
    made = [
        vector_of_features(
            folder / "sae", [FeatureRequest(2, 7)], tmp_path / "1.gguf", layers=[1, 2]
        ),
        vector_of_features(
            folder / "sae", [FeatureRequest(3, 7)], tmp_path / "2.gguf", digests=False
        ),
        vector_of_features(
            folder / "pack.gguf", [FeatureRequest(2, 9)], tmp_path / "3.gguf",
            options=VectorOptions((folder / "a.gguf",)),
        ),
        combined_vector(sources, "a + 3*x", tmp_path / "4.gguf"),
        combined_vector({"x": folder / "b.gguf"}, "x", tmp_path / "5.gguf", options=options),
    ]  # fmt: skip
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for vector in made:
        again = tmp_path / "again.gguf"
        replay(vector.path, again, [moved])
        assert again.read_bytes() == Path(vector.path).read_bytes(), vector.path


def test_replaying_wants_the_same_inputs(folder: Path, tmp_path: Path) -> None:
    made = combined_vector({"a": folder / "a.gguf"}, "a", tmp_path / "v.gguf")
    with pytest.raises(UsageError, match=r"the input a\.gguf is not there"):
        replay(made.path, tmp_path / "w.gguf")
    shutil.copy(folder / "b.gguf", tmp_path / "a.gguf")
    with pytest.raises(UsageError, match=r"the input a\.gguf is another file"):
        replay(made.path, tmp_path / "w.gguf")
    with pytest.raises(PackError, match="does not say how it was made"):
        replay(folder / "a.gguf", tmp_path / "w.gguf")
    assert not (tmp_path / "w.gguf").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        '{"version": 1, "layers": [1]}',
        '{"version": 1, "layers": [1], "make": "combine", "orthogonal_to": 3}',
        '{"version": 1, "layers": "x"}',
        '{"version": 2, "layers": [1]}',
        "[" * 100_000,
        "nonsense",
    ],
)
def test_a_damaged_recipe_is_refused(recipe: str, tmp_path: Path) -> None:
    row = np.ones(4, np.float32)
    write_control_vector(tmp_path / "v.gguf", {1: row}, metadata={"scope.recipe": recipe})
    with pytest.raises(PackError, match=r"recipe"):
        replay(tmp_path / "v.gguf", tmp_path / "w.gguf")


def test_refusals(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.gguf"
    with pytest.raises(PackError, match="do not reach 0"):
        vector_of_features(folder / "sae", [FeatureRequest(0, 1)], out)
    with pytest.raises(UsageError, match="no feature is asked for"):
        vector_of_features(folder / "sae", [], out)
    wanted = [FeatureRequest(1, 1), FeatureRequest(2, 1)]
    with pytest.raises(UsageError, match="several layers cannot be spread"):
        vector_of_features(folder / "sae", wanted, out, layers=[3])
    with pytest.raises(UsageError, match="does not use 'b'"):
        combined_vector({"a": folder / "a.gguf", "b": folder / "b.gguf"}, "a", out)
    with pytest.raises(UsageError, match="steering vectors have no features"):
        vector_of_features(folder / "a.gguf", [FeatureRequest(1, 1)], out)
    with pytest.raises(PackError, match="an SAE, not a steering vector"):
        combined_vector({"a": folder / "sae" / "layer1.sae.pt"}, "a", out)
    write_control_vector(folder / "c.gguf", {1: np.ones(WIDTH, np.float32)}, model_hint="llama")
    with pytest.raises(PackError, match="different models; found llama, qwen3"):
        combined_vector({"a": folder / "a.gguf", "c": folder / "c.gguf"}, "a + c", out)
    assert not out.exists()


def test_names_of_sources() -> None:
    assert name_sources(["in/a.gguf", "b=x/y-z.gguf"]) == {
        "a": Path("in/a.gguf"),
        "b": Path("x/y-z.gguf"),
    }
    with pytest.raises(UsageError, match="two inputs are called 'a'"):
        name_sources(["a.gguf", "x/a.svec"])


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf"), 1e39])
def test_an_alpha_that_steers_nothing_or_nowhere_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha is no factor to steer with"):
        VectorOptions(alpha=alpha)


def test_a_direction_of_which_nothing_is_left_is_not_written(tmp_path: Path) -> None:
    source, out = tmp_path / "v.gguf", tmp_path / "out.gguf"
    write_control_vector(source, {2: np.ones(8, np.float32)})
    with pytest.raises(UsageError, match="nothing is left of the direction at 2"):
        combined_vector({"v": source}, "v*0", out)
    assert not out.exists()
