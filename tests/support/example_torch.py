"""The example model in PyTorch: Transformers' Qwen3 with the weights of a GGUF file, in F32.

Needs torch, transformers and gguf alone: ``scripts/make_fixtures`` uses it in environments of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def torch_model(path: Path) -> Any:
    """The model, for inference. Every parameter comes from the file, or KeyError."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"qwen3.{key}"].contents()

    tensors = {each.name: each for each in reader.tensors}
    n_layer = value("block_count")
    config = Qwen3Config(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=n_layer,
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        max_position_embeddings=value("context_length"),
        tie_word_embeddings="output.weight" not in tensors,
    )
    model = Qwen3ForCausalLM(config).eval().float()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, n_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors[str(names.get_name(name, (".weight",)))]
            numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            parameter.copy_(torch.tensor(numbers).reshape(parameter.shape))
    return model
