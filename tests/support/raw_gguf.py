"""GGUF written byte by byte, so that it can be written wrong. Knows nothing of the runtime's own
code."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEY_TYPES = {
    "u8": 0,
    "u16": 2,
    "i32": 5,
    "u32": 4,
    "f32": 6,
    "bool": 7,
    "string": 8,
    "u64": 10,
    "i64": 11,
}
PACKING = {
    "u8": "B",
    "u16": "H",
    "i32": "i",
    "u32": "I",
    "f32": "f",
    "bool": "?",
    "u64": "Q",
    "i64": "q",
}
TENSOR_TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "F64": (28, 1, 8)}


def string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


@dataclass
class Key:
    name: str
    type: str
    value: Any

    def raw(self) -> bytes:
        head = string(self.name)
        if not self.type.endswith("[]"):
            return (
                head + struct.pack("<I", KEY_TYPES[self.type]) + self.element(self.type, self.value)
            )
        kind = self.type[:-2]
        head += struct.pack("<IIQ", 9, KEY_TYPES[kind], len(self.value))
        return head + b"".join(self.element(kind, each) for each in self.value)

    @staticmethod
    def element(kind: str, value: Any) -> bytes:
        return string(value) if kind == "string" else struct.pack("<" + PACKING[kind], value)


@dataclass
class Tensor:
    """``dims`` as GGUF has them, fastest first; ``type``, ``offset`` and the name's length can be
    made wrong."""

    name: str
    dims: list[int]
    data: bytes
    type: int = 0
    offset: int | None = None
    name_length: int | None = None

    def raw(self, offset: int) -> bytes:
        name = string(self.name)
        if self.name_length is not None:
            name = struct.pack("<Q", self.name_length) + name[8:]
        place = offset if self.offset is None else self.offset
        return (
            name
            + struct.pack("<I", len(self.dims))
            + b"".join(struct.pack("<Q", each) for each in self.dims)
            + struct.pack("<IQ", self.type, place)
        )


def f32(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    return Tensor(name, list(reversed(values.shape)), values.astype("<f4").tobytes())


@dataclass
class RawGguf:
    keys: list[Key] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    byte_order: str = "<"

    def to_bytes(self, alignment: int = 32) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack(f"{self.byte_order}IQQ", self.version, n_tensors, n_keys)
        head += b"".join(key.raw() for key in self.keys)
        data = b""
        for tensor in self.tensors:
            head += tensor.raw(len(data))
            data += tensor.data + bytes(-len(tensor.data) % alignment)
        return head + bytes(-len(head) % alignment) + data

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def pack() -> RawGguf:
    """A sound feature pack: one feature of the embedding behind a ReLU, two of layer 2 behind an
    exact top-k."""
    rng = np.random.default_rng(3)
    full = rng.standard_normal((16, 8)).astype("f4")
    bias = rng.standard_normal(16).astype("f4")
    ids = [5, 2]
    return RawGguf(
        [
            Key("general.architecture", "string", "featurepack"),
            Key("featurepack.version", "u32", 1),
            Key("featurepack.model.architecture", "string", "qwen3"),
            Key("featurepack.model.layers", "u32", 4),
            Key("featurepack.model.width", "u32", 8),
            Key("featurepack.provenance.source", "string", "random numbers"),
            Key("featurepack.feature.layer", "i32[]", [-1, 2, 2]),
            Key("featurepack.feature.id", "i64[]", [7, *ids]),
            Key("featurepack.feature.label", "string[]", ["first", "second", ""]),
            Key("featurepack.layer.embedding.gate", "string", "threshold"),
            Key("featurepack.layer.embedding.stats.levels", "f32[]", [0.5, 0.9]),
            Key("featurepack.layer.2.gate", "string", "topk"),
            Key("featurepack.layer.2.k", "u32", 4),
        ],
        [
            f32("layer.embedding.enc", full[:1]),
            f32("layer.embedding.enc_bias", bias[:1]),
            f32("layer.embedding.dec", full[:1]),
            f32("layer.embedding.gate", bias[:1]),
            f32("layer.embedding.stats", np.ones((1, 5))),
            f32("layer.2.enc", full[ids]),
            f32("layer.2.enc_bias", bias[ids]),
            f32("layer.2.dec", rng.standard_normal((2, 8))),
            f32("layer.2.full_enc", full),
            f32("layer.2.full_enc_bias", bias),
        ],
    )


def vector() -> RawGguf:
    """A sound control vector for blocks 1 and 3."""
    rng = np.random.default_rng(4)
    return RawGguf(
        [
            Key("general.architecture", "string", "controlvector"),
            Key("controlvector.model_hint", "string", "qwen3"),
            Key("controlvector.layer_count", "u32", 2),
        ],
        [f32("direction.1", rng.standard_normal(8)), f32("direction.3", rng.standard_normal(8))],
    )


def model() -> RawGguf:
    """The header of a small model, which llama.cpp would find incomplete but not damaged."""
    rng = np.random.default_rng(5)
    return RawGguf(
        [
            Key("general.architecture", "string", "qwen3"),
            Key("general.name", "string", "test"),
            Key("qwen3.block_count", "u32", 4),
            Key("qwen3.embedding_length", "u32", 32),
            Key("qwen3.context_length", "u32", 512),
            Key("tokenizer.ggml.tokens", "string[]", ["a", "b", "<|im_end|>"]),
            Key("tokenizer.ggml.scores", "f32[]", [0.0, 1.0, 2.0]),
            Key("tokenizer.chat_template", "string", "{{ messages }}"),
        ],
        [
            f32("token_embd.weight", rng.standard_normal((3, 32))),
            Tensor("blk.0.attn_q.weight", [32, 4], bytes(4 * 34), TENSOR_TYPES["Q8_0"][0]),
            f32("output_norm.weight", rng.standard_normal(32)),
        ],
    )


BASES = {"pack": pack, "vector": vector, "model": model}
