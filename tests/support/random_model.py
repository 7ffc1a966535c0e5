"""Random small models, each as an F32 GGUF file and as a Transformers model with the same weights.

llama.cpp's names are the canonical ones; `to_transformers` renames, and undoes the row order that
llama.cpp wants for the rotary halves of `llama` models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.gguf_model import (
    DELTA_KERNEL,
    Shape,
    rope_sections,
    tensor_shapes,
    write_model,
)

Weights = dict[str, NDArray[np.float32]]

SHAPES = {
    "qwen3": Shape("qwen3"),
    "llama": Shape("llama", n_embd=96, n_layer=4, n_ff=160, n_head=6, n_head_kv=3, head_dim=16),
    "qwen3moe": Shape("qwen3moe", n_layer=4, n_ff=48, n_expert=8, n_expert_used=2, tied=True),
    "qwen35": Shape("qwen35", n_layer=6, full_every=3, n_delta_head=2, delta_dim=32),
}

_RENAMED = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


@dataclass(frozen=True, slots=True)
class RandomModel:
    """One set of random weights in both forms.

    Attributes:
        path: the F32 GGUF file.
        torch_model: Transformers model, eager attention, eval mode, F32.
    """

    shape: Shape
    path: Path
    torch_model: torch.nn.Module


def random_weights(shape: Shape, seed: int) -> Weights:
    """F32 weights by GGUF name; matrices keep their inputs' scale, norms lie around 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, dims in tensor_shapes(shape).items():
        noise = rng.standard_normal(dims, dtype=np.float32)
        if len(dims) == 1:
            weights[name] = 1 + np.float32(0.1) * noise
            if name.endswith("ssm_a"):  # a rate of decay
                weights[name] *= -1
        elif name == "token_embd.weight":
            weights[name] = noise
        else:
            weights[name] = noise / np.float32(np.sqrt(dims[-1]))
    return weights


def make_random_model(name: str, folder: Path, seed: int = 0) -> RandomModel:
    """Writes ``folder/<name>-<seed>.gguf`` for one of `SHAPES` and builds its twin."""
    shape = SHAPES[name]
    weights = random_weights(shape, seed)
    path = folder / f"{name}-{seed}.gguf"
    f32 = GGMLQuantizationType.F32
    write_model(path, shape, ((n, w, f32) for n, w in weights.items()), name=f"random-{name}")
    return RandomModel(shape, path, to_transformers(shape, weights))


def to_transformers(shape: Shape, weights: Weights) -> torch.nn.Module:
    """The Transformers model with these weights. Each must find its place: loading is strict."""
    model = _empty_model(shape)
    state: dict[str, NDArray[np.float32]] = {}
    for name, weight in weights.items():
        if name.startswith("blk."):
            _, block, part, *_ = name.split(".")
            prefix = f"model.layers.{block}."
            if part in _RENAMED:
                state[f"{prefix}{_RENAMED[part]}.weight"] = _as_in_transformers(shape, part, weight)
            elif part == "ssm_a":
                state[f"{prefix}linear_attn.A_log"] = np.log(-weight)
            elif part == "ssm_dt":
                state[f"{prefix}linear_attn.dt_bias"] = weight
            elif part == "ssm_conv1d":
                state[f"{prefix}linear_attn.conv1d.weight"] = weight[:, None]
    for i in range(shape.n_layer if shape.n_expert else 0):
        experts = [weights[f"blk.{i}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
        prefix = f"model.layers.{i}.mlp.experts."
        state[prefix + "gate_up_proj"] = np.concatenate(experts[:2], axis=1)
        state[prefix + "down_proj"] = experts[2]
    state["model.embed_tokens.weight"] = weights["token_embd.weight"]
    state["model.norm.weight"] = _as_in_transformers(
        shape, "output_norm", weights["output_norm.weight"]
    )
    state["lm_head.weight"] = weights["token_embd.weight" if shape.tied else "output.weight"]
    model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in state.items()}, strict=True)
    return model


def _as_in_transformers(
    shape: Shape, part: str, weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the two disagree about.

    llama.cpp rotates neighbouring rows of a `llama` head, Transformers rows half a head apart.
    Qwen3.5's norms, but for the delta rule's own, are stored as the difference from 1.
    """
    if shape.architecture == "llama" and part in ("attn_q", "attn_k"):
        halves = weight.reshape(-1, shape.head_dim // 2, 2, weight.shape[1])
        return halves.swapaxes(1, 2).reshape(weight.shape)
    if shape.architecture == "qwen35" and part.endswith("_norm") and part != "ssm_norm":
        return weight - 1
    return weight


def _empty_model(shape: Shape) -> torch.nn.Module:
    common: dict[str, Any] = {
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head_kv,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.n_ctx_train,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "tie_word_embeddings": shape.tied,
        "attn_implementation": "eager",
    }
    model: torch.nn.Module
    if shape.architecture == "qwen35":
        common["rope_parameters"] |= {
            "partial_rotary_factor": shape.rope_dim / shape.head_dim,
            "mrope_section": rope_sections(shape),
            "mrope_interleaved": True,
        }
        delta: dict[str, Any] = {
            "layer_types": [
                "linear_attention" if (i + 1) % shape.full_every else "full_attention"
                for i in range(shape.n_layer)
            ],
            "linear_conv_kernel_dim": DELTA_KERNEL,
            "linear_key_head_dim": shape.delta_dim,
            "linear_value_head_dim": shape.delta_dim,
            "linear_num_key_heads": shape.n_delta_head,
            "linear_num_value_heads": shape.n_delta_head,
        }
        config = Qwen3_5TextConfig(intermediate_size=shape.n_ff, **delta, **common)
        model = Qwen3_5ForCausalLM(config)
    elif shape.architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=shape.n_ff, **common))
    elif shape.architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(intermediate_size=shape.n_ff, **common))
    elif shape.architecture == "qwen3moe":
        experts: dict[str, Any] = {
            "moe_intermediate_size": shape.n_ff,
            "num_experts": shape.n_expert,
            "num_experts_per_tok": shape.n_expert_used,
            "norm_topk_prob": True,
        }
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**experts, **common))
    else:
        raise ValueError(f"no Transformers twin for {shape.architecture}")
    return model.eval()
