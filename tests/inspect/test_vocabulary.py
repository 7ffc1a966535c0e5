"""The vocabulary that a direction pushes, against llama.cpp's own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scope_runtime.errors import ModelError
from scope_runtime.inspect.texts import words_of
from scope_runtime.inspect.vocabulary import OutputHead, pushed
from scope_runtime.llama.capture import capturing
from scope_runtime.llama.checks import check_model
from tests.conftest import ROOT
from tests.support.random_model import make_random_model

EXAMPLE = ROOT / "examples" / "tiny-qwen3"


@pytest.fixture(params=["shipped", "f16", "llama", "qwen3moe"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Quantized, F16; with a head of its own, and with tied embeddings."""
    name: str = request.param
    if name in ("shipped", "f16"):
        return EXAMPLE / f"tiny-qwen3-{'q8_0' if name == 'shipped' else 'f16'}.gguf"
    return make_random_model(name, tmp_path).path


def test_scores_are_what_llama_cpp_s_logits_do_when_nothing_is_left_but_the_direction(
    model: Path,
) -> None:
    """Added in great strength, a direction is all that the last norm sees: its logits are the head's own answer."""
    info = check_model(model)
    directions = np.random.default_rng(2).normal(size=(3, info.n_embd)).astype(np.float32)
    found = OutputHead(info).scores(directions)
    with capturing(model, n_ctx=64) as context:
        for direction, scores in zip(directions, found, strict=True):
            vectors = np.zeros((info.n_layer - 1, info.n_embd), np.float32)
            vectors[-1] = 1e6 * direction
            context.set_control_vectors(vectors)
            context.forget()
            logits = context.decode([5, 6], 0).astype(np.float64)
            expected = (logits - logits.mean()) / logits.std()
            np.testing.assert_allclose(scores, expected, atol=0.05)
            assert np.corrcoef(scores, expected)[0, 1] > 0.9998


def test_the_most_and_the_least_likely_tokens_in_words() -> None:
    model = EXAMPLE / "tiny-qwen3-f16.gguf"
    with capturing(model, n_ctx=64) as context:
        words = words_of(context)
        wanted = context.tokenize(" garden", special=False, add_bos=False)
        scores = np.zeros(context.n_vocab)
        scores[wanted[0]], scores[wanted[0] + 1] = 3, -3
        more, less = pushed(scores, 1, words)
    assert (more[0].token, more[0].score) == (wanted[0], 3)
    assert " garden".startswith(more[0].text)
    assert less[0].token == wanted[0] + 1


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    info = check_model(EXAMPLE / "tiny-qwen3-f16.gguf")
    pack = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"
    other = type(info)(**{**{f: getattr(info, f) for f in info.__slots__}, "files": (str(pack),)})
    with pytest.raises(ModelError, match="the output head is not found"):
        OutputHead(other)
