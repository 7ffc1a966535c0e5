"""Every control vector that we write, in a stock llama-server: its logits are those of h + alpha*d.

The reference is PyTorch with a forward hook on the same weights. The off-by-one trap has its own
case: a file shifted by one block does not give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.contrast import Method, contrast_vector
from converters.features import FeatureRequest
from converters.vector import VectorOptions, combined_vector, vector_of_features
from scope_runtime.errors import PackError
from scope_runtime.llama import library
from scope_runtime.vectors import ControlVector, read_control_vector, write_control_vector
from tests.support.interventions import prompt
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.random_pack import RandomPack, make_random_pack
from tests.support.stock_server import stock_server
from tests.support.torch_reference import Rule, Vector, run

library.load()

BOUND = 1e-3
"""Largest difference of two logprobs that counts as equal, in units of the logits' range."""

ALPHA = 1.5


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself stays where it is."""
    monkeypatch.setattr("scope_runtime.files.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    return make_random_model(request.param, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def pack(model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> RandomPack:
    shape = SHAPES[model.shape.architecture]
    return make_random_pack(shape, tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def vectors(
    model: RandomModel, pack: RandomPack, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ControlVector]:
    """One of each way to make them."""
    out = tmp_path_factory.mktemp("vectors")
    (out / "p.txt").write_text("the sun rises\na bird sings\nhello, you\n")
    (out / "n.txt").write_text("the sun sets\na dog barks\ngo away\n")
    source, whole = pack.folder / pack.pack_name, pack.folder / pack.vector_name
    last = model.shape.n_layer - 1
    texts = (out / "p.txt", out / "n.txt")
    return {
        "feature": vector_of_features(source, [FeatureRequest(2, 5)], out / "1.gguf"),
        "spread": vector_of_features(
            source, [FeatureRequest(0, 9)], out / "2.gguf", layers=[1, last],
            options=VectorOptions(alpha=0.7),
        ),
        "combined": combined_vector(
            {"v": whole, "f": out / "1.gguf"}, "0.7*v - 0.2*f", out / "3.gguf",
            options=VectorOptions(orthogonal_to=(out / "2.gguf",), normalise=True, alpha=2.0),
        ),
        "mean": contrast_vector(model.path, *texts, out / "4.gguf", n_threads=1).vector,
        "pca": contrast_vector(
            model.path, *texts, out / "5.gguf", method=Method.PCA, layers=[2], n_threads=1
        ).vector,
    }  # fmt: skip


def reference(model: RandomModel, tokens: list[int], vector: ControlVector | None) -> np.ndarray:
    """PyTorch's logits of the next token, with h + ALPHA*d after every block that has a d."""
    layers = {} if vector is None else vector.layers
    rules = [Rule("amplify", (Vector(n, row),), alpha=ALPHA) for n, row in layers.items()]
    return run(model.torch_model, tokens, rules).logits[-1]


def difference(logprobs: np.ndarray, logits: np.ndarray) -> float:
    """Largest, in units of the logits' range."""
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), dim=0).numpy()
    assert np.isfinite(logprobs).all()
    return float(np.abs(logprobs - wanted).max() / np.ptp(logits))


@pytest.mark.parametrize("name", ["feature", "spread", "combined", "mean", "pca"])
def test_the_logits_are_those_of_pytorch(
    name: str, model: RandomModel, vectors: Mapping[str, ControlVector]
) -> None:
    vector, n_vocab = vectors[name], model.shape.n_vocab
    tokens = prompt(n_vocab, 24, 7)
    with stock_server(model.path, (Path(vector.path), ALPHA)) as server:
        found = server.logprobs(tokens, n_vocab)
    steered, plain = reference(model, tokens, vector), reference(model, tokens, None)
    assert difference(found, steered) <= BOUND
    assert difference(found, plain) > 10 * BOUND


def test_a_shifted_file_gives_others(
    model: RandomModel, vectors: Mapping[str, ControlVector], tmp_path: Path
) -> None:
    vector, n_vocab = vectors["feature"], model.shape.n_vocab
    shifted = tmp_path / "shifted.gguf"
    write_control_vector(shifted, {n + 1: row for n, row in vector.layers.items()})
    tokens = prompt(n_vocab, 24, 7)
    with stock_server(model.path, (shifted, ALPHA)) as server:
        found = server.logprobs(tokens, n_vocab)
    assert difference(found, reference(model, tokens, vector)) > 10 * BOUND
    assert difference(found, reference(model, tokens, read_control_vector(shifted))) <= BOUND


def test_the_server_passes_over_what_we_refuse(model: RandomModel, tmp_path: Path) -> None:
    """An F16 direction: it says so in its log and serves unsteered, so that we must not take it."""
    from gguf import GGUFWriter

    path = tmp_path / "f16.gguf"
    writer = GGUFWriter(path, "controlvector")
    writer.add_tensor("direction.1", np.ones(model.shape.n_embd, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = prompt(model.shape.n_vocab, 24, 7)
    with stock_server(model.path, (path, 1.0)) as server:
        found = server.logprobs(tokens, model.shape.n_vocab)
    assert difference(found, reference(model, tokens, None)) <= BOUND
    with pytest.raises(PackError):
        read_control_vector(path)
