"""Contrast vectors against PyTorch's residuals of the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.contrast import Method, contrast_vector, direction
from converters.vector import replay
from scope_runtime.errors import PackError, UsageError
from scope_runtime.llama import library
from scope_runtime.llama.context import Context, ContextOptions
from tests.support.random_model import RandomModel, make_random_model
from tests.support.torch_reference import Rule, Vector, run

library.load()

POSITIVE = ["the sun rises", "a bird sings", "rain, at last!", "good morning"]
NEGATIVE = ["the sun sets", "a dog barks", "no rain", "good night to you all"]


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return make_random_model("qwen3", tmp_path_factory.mktemp("contrast"))


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    positive, negative = tmp_path / "p.txt", tmp_path / "n.jsonl"
    positive.write_text("\n".join(POSITIVE))
    negative.write_text("\n".join(json.dumps({"text": each}) for each in NEGATIVE))
    return positive, negative


def last_residuals(model: RandomModel, texts: list[str], layer: int, *, chat: bool) -> np.ndarray:
    """From Transformers; only the tokens are llama.cpp's."""
    context = Context(model.path, ContextOptions(n_ctx=64, n_threads=1, use_extra_bufts=False))
    zero = np.zeros(model.shape.n_embd, np.float32)
    out = []
    for text in texts:
        if chat:
            text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        tokens = context.tokenize(text, special=chat)
        with torch.no_grad():
            rules = [Rule("amplify", (Vector(layer, zero),))]
            out.append(run(model.torch_model, tokens, rules).residuals[layer][-1])
    context.close()
    return np.stack(out)


@pytest.mark.parametrize("chat", [False, True])
def test_the_mean_difference(
    model: RandomModel, texts: tuple[Path, Path], tmp_path: Path, chat: bool
) -> None:
    made = contrast_vector(
        model.path, *texts, tmp_path / "v.gguf", chat=chat, n_ctx=128, n_threads=1
    )
    n_layer = model.shape.n_layer
    assert list(made.vector.layers) == list(range(1, n_layer))
    assert made.vector.model_hint == "qwen3"
    for layer in (1, n_layer - 1):
        high, low = (last_residuals(model, each, layer, chat=chat) for each in (POSITIVE, NEGATIVE))
        wanted = high.mean(axis=0) - low.mean(axis=0)
        found = made.vector.layers[layer]
        # Of the residuals, not of the difference, which may be small beside them.
        assert np.abs(found - wanted).max() < 1e-3 * np.abs(high).max(), layer
        quality = made.layers[layer - 1]
        assert quality.layer == layer
        assert quality.length == pytest.approx(np.linalg.norm(wanted), rel=1e-2)
        along = high @ wanted, low @ wanted
        beaten = (along[0][:, None] > along[1][None, :]).mean()
        assert quality.separation == pytest.approx(beaten, abs=1 / 16)  # a pair may be even


def test_the_main_axis_of_pairs(
    model: RandomModel, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    made = contrast_vector(
        model.path, *texts, tmp_path / "v.gguf", method=Method.PCA, layers=[2], n_threads=1
    )
    high, low = (last_residuals(model, each, 2, chat=False) for each in (POSITIVE, NEGATIVE))
    differences = torch.from_numpy(high - low)
    values, axes = torch.linalg.eigh(differences.T @ differences)
    wanted = axes[:, -1].numpy()
    found = made.vector.layers[2].astype(np.float64)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert abs(found @ wanted) > 1 - 1e-4
    assert ((high - low) @ found).mean() > 0
    share = float(values[-1] / values.sum())
    assert made.layers[0].explained == pytest.approx(share, rel=1e-2)


def test_replaying_gives_the_same_bytes(
    model: RandomModel, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out, again = tmp_path / "v.gguf", tmp_path / "w.gguf"
    contrast_vector(model.path, *texts, out, layers=[1, 3], method=Method.PCA, n_ctx=64)
    replay(out, again, [tmp_path, model.path.parent])
    assert again.read_bytes() == out.read_bytes()
    texts[0].write_text("changed")
    with pytest.raises(UsageError, match=r"p\.txt is another file"):
        replay(out, again, [tmp_path, model.path.parent])


def test_the_sign_comes_from_the_pairs() -> None:
    rng = np.random.default_rng(0)
    axis = rng.standard_normal(8).astype(np.float32)
    low = rng.standard_normal((20, 8)).astype(np.float32)
    high = low + axis
    for method in Method:
        assert direction(high, low, method) @ axis > 0
        assert direction(low, high, method) @ axis < 0
        with pytest.raises(PackError, match="do not differ"):
            direction(low, low, method)


def test_refusals(model: RandomModel, texts: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "v.gguf"
    texts[0].write_text("one\n")
    with pytest.raises(UsageError, match="pca takes pairs"):
        contrast_vector(model.path, *texts, out, method=Method.PCA)
    with pytest.raises(UsageError, match="reach layer 1 and above; found 0"):
        contrast_vector(model.path, *texts, out, layers=[0])
    with pytest.raises(UsageError, match="no such layer; found 5"):
        contrast_vector(model.path, *texts, out, layers=[5])
    texts[0].write_text("x" * 300)
    with pytest.raises(UsageError, match="longer than the context"):
        contrast_vector(model.path, *texts, out, n_ctx=8)
    assert not out.exists()
