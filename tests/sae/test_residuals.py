"""What is encoded are the residuals of the example model, as Transformers and nnsight see them in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from scope_runtime.llama import library
from scope_runtime.llama.capture import capturing
from scope_runtime.llama.context import Context
from scope_runtime.sae import EncodedText, SaeLayers, encode_texts
from tests.conftest import ROOT
from tests.converters.test_originals import FIXTURES
from tests.support.example_torch import torch_model
from tests.support.numerics import Numerics

library.load()

EXAMPLE = ROOT / "examples" / "tiny-qwen3"
F16 = EXAMPLE / "tiny-qwen3-f16.gguf"
SEEN = FIXTURES / "nnsight" / "tiny-qwen3.npz"


def in_f32(source: Path, target: Path) -> None:
    """The same file with every tensor in F32: llama.cpp rounds what it multiplies F16 weights with."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen3")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue
        value = gguf.LlamaFileType.ALL_F32 if name == gguf.Keys.General.FILE_TYPE else None
        kind, *inside = field.types
        writer.add_key_value(name, field.contents() if value is None else value, kind, *inside[:1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    path = tmp_path_factory.mktemp("f32") / "tiny-f32.gguf"
    in_f32(F16, path)
    with (
        Numerics().in_force(),
        capturing(path, n_ctx=64, n_threads=1, use_extra_bufts=False) as context,
    ):
        yield context


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    with np.load(SEEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def encoded(context: Context, seen: dict[str, Any]) -> EncodedText:
    """The text that the fixture was made of, at the layer that has an SAE."""
    [text] = encode_texts(context, [seen["tokens"].tolist()], SaeLayers.open(EXAMPLE / "sae"))
    return text


def check(found: Any, expected: Any, share: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= share * (expected.max() - expected.min())


def test_residuals_are_those_that_nnsight_sees(encoded: EncodedText, seen: dict[str, Any]) -> None:
    assert encoded.tokens == tuple(seen["tokens"].tolist())
    check(encoded.residuals[3], seen["3"], 1e-4)


def test_every_block_s_residuals_are_those_of_transformers(
    context: Context, seen: dict[str, Any]
) -> None:
    from scope_runtime.llama.capture import residuals

    model = torch_model(F16)
    outputs: dict[int, Any] = {}
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(
            lambda _module, _inputs, out, layer=layer: outputs.update(
                {layer: (out[0] if isinstance(out, tuple) else out)[0].numpy()}
            )
        )
    with torch.no_grad():
        model(input_ids=torch.from_numpy(seen["tokens"][None].astype(np.int64)))
    [ours] = residuals(context, [seen["tokens"].tolist()], range(4))
    for layer in range(4):
        check(ours.layers[layer], outputs[layer], 1e-4)
        check(outputs[layer].reshape(-1, 256), seen[str(layer)], 1e-5)


def test_activations_are_torch_s_on_the_residuals_of_the_other(
    encoded: EncodedText, seen: dict[str, Any]
) -> None:
    weights = torch.load(EXAMPLE / "sae" / "layer3.sae.pt", weights_only=True)
    scores = torch.from_numpy(seen["3"]) @ weights["W_enc"].float().T + weights["b_enc"].float()
    range_ = float(scores.max() - scores.min())
    active = encoded.active[3]
    for token, row in enumerate(scores):
        ids, values = active.token(token)
        np.testing.assert_allclose(values, row[ids], atol=1e-4 * range_)
        top = row.topk(17)
        differ = set(ids.tolist()) ^ set(top.indices[:16].tolist())
        # Residuals differ by rounding, so a latent may take another's place only at such a distance.
        assert not differ or float(top.values[15] - top.values[16]) <= 2e-4 * range_


def test_the_file_as_it_ships_is_not_far(seen: dict[str, Any]) -> None:
    with capturing(F16, n_ctx=64, n_threads=1, use_extra_bufts=False) as context:
        saes = SaeLayers.open(EXAMPLE / "sae")
        [text] = encode_texts(context, [seen["tokens"].tolist()], saes)
    check(text.residuals[3], seen["3"], 3e-3)
