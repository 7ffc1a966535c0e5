"""Writes a model of our own making as a GGUF file that llama.cpp runs: shape, tokenizer, tensors.

Tensor and key names are those of llama.cpp's `llama`, `qwen3`, `qwen3moe` and `qwen35` graphs. No
torch here: the overhead benchmark writes its model with this module too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Shape:
    """Everything that fixes which tensors a model has.

    Attributes:
        architecture: llama.cpp's name: ``llama``, ``qwen3``, ``qwen3moe`` or ``qwen35``.
        n_expert: experts a block (``qwen3moe`` only), of which each token uses ``n_expert_used``;
            ``n_ff`` is then the width of one expert.
        full_every: every so manieth block has attention, the others a gated delta rule with
            ``n_delta_head`` heads of ``delta_dim`` (``qwen35`` only).
        tied: the output matrix is the embedding.
    """

    architecture: str
    n_embd: int = 64
    n_layer: int = 5
    n_ff: int = 96
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_vocab: int = 320
    n_expert: int = 0
    n_expert_used: int = 0
    full_every: int = 1
    n_delta_head: int = 0
    delta_dim: int = 0
    tied: bool = False
    n_ctx_train: int = 4096
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def rope_dim(self) -> int:
        """How much of each head is rotated."""
        return self.head_dim // 4 if self.architecture == "qwen35" else self.head_dim


DELTA_KERNEL = 4


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name to numpy shape, matrices as (rows, columns) = (outputs, inputs)."""
    e, f = shape.n_embd, shape.n_ff
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.n_vocab, e)}
    for i in range(shape.n_layer):
        block = _attention(shape) if (i + 1) % shape.full_every == 0 else _delta_rule(shape)
        second_norm = "post_attention_norm" if shape.architecture == "qwen35" else "ffn_norm"
        block |= {"attn_norm": (e,), second_norm: (e,)}
        if shape.n_expert:
            n = shape.n_expert
            block |= {
                "ffn_gate_inp": (n, e),
                "ffn_gate_exps": (n, f, e),
                "ffn_up_exps": (n, f, e),
                "ffn_down_exps": (n, e, f),
            }
        else:
            block |= {"ffn_gate": (f, e), "ffn_up": (f, e), "ffn_down": (e, f)}
        for name, dims in block.items():
            whole = name if name in ("ssm_a", "ssm_dt.bias") else f"{name}.weight"
            tensors[f"blk.{i}.{whole}"] = dims
    tensors["output_norm.weight"] = (e,)
    if not shape.tied:
        tensors["output.weight"] = (shape.n_vocab, e)
    return tensors


def _attention(shape: Shape) -> dict[str, tuple[int, ...]]:
    e, hd = shape.n_embd, shape.head_dim
    gated = 2 if shape.architecture == "qwen35" else 1  # each head's query, then its gate
    block: dict[str, tuple[int, ...]] = {
        "attn_q": (shape.n_head * hd * gated, e),
        "attn_k": (shape.n_head_kv * hd, e),
        "attn_v": (shape.n_head_kv * hd, e),
        "attn_output": (e, shape.n_head * hd),
    }
    if shape.architecture.startswith("qwen3"):
        block |= {"attn_q_norm": (hd,), "attn_k_norm": (hd,)}
    return block


def _delta_rule(shape: Shape) -> dict[str, tuple[int, ...]]:
    e, n = shape.n_embd, shape.n_delta_head
    inner = n * shape.delta_dim
    return {
        "attn_qkv": (3 * inner, e),
        "attn_gate": (inner, e),
        "ssm_conv1d": (3 * inner, DELTA_KERNEL),
        "ssm_dt.bias": (n,),
        "ssm_a": (n,),
        "ssm_beta": (n, e),
        "ssm_alpha": (n, e),
        "ssm_norm": (shape.delta_dim,),
        "ssm_out": (e, inner),
    }


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself if visible, else U+0100 on."""
    letters, n_moved = [], 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            letters.append(chr(byte))
        else:
            letters.append(chr(0x100 + n_moved))
            n_moved += 1
    return letters


def vocabulary(n_vocab: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges: bytes, pairs of bytes that merge, fillers, ChatML specials.

    Every merge joins two single bytes, so that any text tokenizes whatever the size. Raises
    ValueError if ``n_vocab`` cannot hold the bytes and the specials.
    """
    letters = byte_letters()
    n_free = n_vocab - len(letters) - len(SPECIAL_TOKENS)
    if n_free < 0:
        raise ValueError(f"n_vocab must be at least {n_vocab - n_free}, is {n_vocab}")
    ascii_letters = [letters[b] for b in b" etaoinshrdlucmfwypvbgkjqxz"]
    pairs = [(a, b) for a in ascii_letters for b in ascii_letters[1:]][:n_free]
    merged = [a + b for a, b in pairs]
    fillers = [f"filler{i}" for i in range(n_free - len(merged))]
    tokens = letters + merged + fillers + list(SPECIAL_TOKENS)
    n_normal = n_vocab - len(SPECIAL_TOKENS)
    types = [TokenType.NORMAL] * n_normal + [TokenType.CONTROL] * len(SPECIAL_TOKENS)
    return tokens, [int(t) for t in types], [f"{a} {b}" for a, b in pairs]


def rope_sections(shape: Shape) -> list[int]:
    """How the rotated pairs are shared by time, height and width; for text all three are equal."""
    pairs = shape.rope_dim // 2
    return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


def write_model(
    path: Path,
    shape: Shape,
    tensors: Iterable[tuple[str, NDArray[np.generic], GGMLQuantizationType]],
    name: str = "random",
) -> None:
    """Writes the file. A tensor of a quantized type comes as its bytes, (rows, bytes a row)."""
    writer = GGUFWriter(path, shape.architecture)
    writer.add_name(name)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.rope_dim)
    if shape.n_delta_head:
        writer.add_rope_dimension_sections([*rope_sections(shape), 0])
        writer.add_full_attention_interval(shape.full_every)
        writer.add_ssm_conv_kernel(DELTA_KERNEL)
        writer.add_ssm_state_size(shape.delta_dim)
        writer.add_ssm_group_count(shape.n_delta_head)
        writer.add_ssm_time_step_rank(shape.n_delta_head)
        writer.add_ssm_inner_size(shape.n_delta_head * shape.delta_dim)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
        writer.add_expert_feed_forward_length(shape.n_ff)
    tokens, types, merges = vocabulary(shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template(CHATML)
    for tensor_name, data, kind in tensors:
        writer.add_tensor(tensor_name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
