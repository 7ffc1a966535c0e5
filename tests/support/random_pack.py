"""A random SAE for a random model: pack and control vector on disk, latents for the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from scope_runtime.packs import PackLayer, PackModel, PackStats, write_pack
from scope_runtime.policy.model import GateKind
from tests.support.gguf_model import Shape
from tests.support.torch_reference import EMBEDDING, Gate, Latent, Vector

N_LATENTS = 64
TOP_K = 8


@dataclass(frozen=True, slots=True)
class RandomPack:
    """Two files in one folder, and what they hold.

    Attributes:
        latents: every feature by layer, in order of id, with the gate relu.
        directions: the control vector's direction of every block from 1 on.
    """

    folder: Path
    pack_name: str
    vector_name: str
    latents: dict[int, list[Latent]]
    directions: dict[int, Vector]

    def gated(self, latent: Latent, kind: str, threshold: float = 0.0) -> Latent:
        """The same feature behind another gate; topk has the pack's k."""
        if kind != "topk":
            return replace(latent, gate=Gate(kind, threshold))
        layer = self.latents[latent.layer]
        encoder = np.stack([each.w for each in layer])
        bias = np.array([each.b for each in layer], dtype=np.float32)
        return replace(latent, gate=Gate(kind, k=TOP_K, encoder=encoder, bias=bias))


def make_random_pack(shape: Shape, folder: Path, seed: int = 0) -> RandomPack:
    """Writes ``pack.gguf`` and ``vector.gguf``: a whole SAE at every hook point."""
    rng = np.random.default_rng([seed, 1])
    latents = {
        layer: _random_layer(rng, layer, shape.n_embd)
        for layer in [EMBEDDING, *range(shape.n_layer)]
    }
    directions = {
        layer: Vector(layer, np.float32(0.5) * rng.standard_normal(shape.n_embd, dtype=np.float32))
        for layer in range(1, shape.n_layer)
    }
    pack = RandomPack(folder, "pack.gguf", "vector.gguf", latents, directions)
    model = PackModel(shape.architecture, shape.n_layer, shape.n_embd)
    write_pack(folder / pack.pack_name, model, [_pack_layer(each) for each in latents.values()])
    write_control_vector(
        folder / pack.vector_name, {n: vector.d for n, vector in directions.items()}
    )
    return pack


def write_control_vector(path: Path, directions: dict[int, NDArray[np.float32]]) -> None:
    """llama.cpp's format, written without the runtime's help."""
    writer = GGUFWriter(path, "controlvector")
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_layer(rng: np.random.Generator, layer: int, n_embd: int) -> list[Latent]:
    """Latents that fire at about a third of the tokens; decoder rows not of unit length."""
    w = rng.standard_normal((N_LATENTS, n_embd), dtype=np.float32) / np.float32(np.sqrt(n_embd))
    b = rng.uniform(-1, 0.2, N_LATENTS).astype(np.float32)
    d = rng.standard_normal((N_LATENTS, n_embd), dtype=np.float32)
    d *= np.linspace(0.5, 2, N_LATENTS, dtype=np.float32)[:, None] / np.float32(np.sqrt(n_embd))
    largest = rng.uniform(2, 6, N_LATENTS).astype(np.float32)
    return [
        Latent(layer, i, w[i], float(b[i]), d[i], Gate("relu"), float(largest[i]))
        for i in range(N_LATENTS)
    ]


def _pack_layer(latents: list[Latent]) -> PackLayer:
    f32 = np.float32
    enc = np.stack([each.w for each in latents])
    bias = np.array([each.b for each in latents], dtype=f32)
    largest = np.array([each.max for each in latents], dtype=f32)
    half, n = np.float32(0.5) * largest, len(latents)
    return PackLayer(
        layer=latents[0].layer,
        ids=np.arange(n, dtype=np.int64),
        labels=("",) * n,
        enc=enc,
        enc_bias=bias,
        dec=np.stack([each.d for each in latents]),
        gate=GateKind.RELU,
        k=TOP_K,
        stats=PackStats(largest, half, np.full(n, 0.3, f32), (0.5,), half[:, None]),
        full_enc=enc,
        full_enc_bias=bias,
    )
