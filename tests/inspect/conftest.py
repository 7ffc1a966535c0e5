"""The example model, and texts that no model has read: everything in them is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.inspect import Reader, Reading
from scope_runtime.inspect.reading import Said
from scope_runtime.policy.model import GateKind
from scope_runtime.sae import FullLayer, SaeLayers, WholeEncoder
from tests.conftest import ROOT

MODEL = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
F16 = MODEL.with_name("tiny-qwen3-f16.gguf")
PACK = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"
SAE = ROOT / "examples" / "tiny-qwen3" / "sae"
ENGLISH_ONLY = ROOT / "policies" / "english-only.yaml"
RECORDING = ROOT / "policies" / "recordings" / "tiny-qwen3.rec"
QUESTION = "Hi. What can people see in the city of Zhihai?"

N_LATENTS = 6


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    with Reader(MODEL, n_ctx=256, n_threads=1) as reader:
        yield reader


@pytest.fixture(scope="session")
def pack() -> SaeLayers:
    return SaeLayers.open(PACK)


def mirrors(labels: dict[int, str] | None = None) -> SaeLayers:
    """An SAE whose latent i is the residual's value i where that is above 0, on layers 1 and 2."""

    def layer(number: int) -> FullLayer:
        return FullLayer(
            layer=number,
            encoder=WholeEncoder(
                np.eye(N_LATENTS, dtype=np.float32), "F32", np.zeros(N_LATENTS, np.float32)
            ),
            gate=GateKind.RELU,
            k=None,
            file=Path("mirrors"),
            decoder=lambda ids: np.eye(N_LATENTS, dtype=np.float32)[ids],
            labels=labels if number == 1 else None,
        )

    return SaeLayers("mirrors", "test", (1, 2), layer)


def drawn(
    pieces: list[str],
    values: dict[tuple[int, int], dict[int, float]],
    *,
    n_prompt: int | None = None,
    name: str = "text",
    said: bool = True,
) -> Reading:
    """A reading for `mirrors`: (layer, latent) to token to activation."""
    h = {layer: np.zeros((len(pieces), N_LATENTS), np.float32) for layer in (1, 2)}
    for (layer, latent), at in values.items():
        for token, value in at.items():
            h[layer][token, latent] = value
    following = tuple((Said(0, piece, 0.75), Said(1, " or", 0.125)) for piece in pieces[1:])
    return Reading(
        name,
        tuple(range(len(pieces))),
        tuple(pieces),
        n_prompt,
        h,
        h,
        (*following, (Said(2, "<end>", 0.5),)) if said else (),
    )
