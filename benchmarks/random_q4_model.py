"""A model of a real one's shape with random Q4_0 weights: as fast and as slow as the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from tests.support.gguf_model import Shape, tensor_shapes, write_model

QWEN3_0_6B = Shape(
    "qwen3",
    n_embd=1024,
    n_layer=28,
    n_ff=3072,
    n_head=16,
    n_head_kv=8,
    head_dim=128,
    n_vocab=151_936,
    tied=True,
    rope_base=1e6,
)
TINY = Shape("qwen3", n_embd=128, n_layer=4, n_ff=256, n_vocab=512, tied=True)

BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # Q4_0: one F16 scale and 32 nibbles
NIBBLE_STD = 4.61  # of a uniform nibble less 8


def model_file(shape: Shape, folder: Path) -> Path:
    """The model's file in ``folder``, written first if it is not there."""
    path = folder / f"random-q4_0-{shape.n_layer}x{shape.n_embd}-v{shape.n_vocab}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write_model(unfinished, shape, _tensors(shape, np.random.default_rng(0)))
        unfinished.replace(path)
    return path


def _tensors(
    shape: Shape, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.generic], GGMLQuantizationType]]:
    for name, dims in tensor_shapes(shape).items():
        if len(dims) == 1:
            yield name, np.ones(dims, np.float32), GGMLQuantizationType.F32
        else:
            std = 1.0 if name == "token_embd.weight" else dims[1] ** -0.5
            yield name, _random_q4_0(rng, dims[0], dims[1], std), GGMLQuantizationType.Q4_0


def _random_q4_0(
    rng: np.random.Generator, rows: int, columns: int, std: float
) -> NDArray[np.uint8]:
    """Rows of Q4_0 blocks with uniform nibbles: weights of mean about 0 and the given deviation."""
    blocks = rng.integers(0, 256, (rows, columns // BLOCK_WEIGHTS, BLOCK_BYTES), dtype=np.uint8)
    blocks[..., :2] = np.array([std / NIBBLE_STD], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
