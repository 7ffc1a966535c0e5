"""One small artefact of every format that is published, for the tiny model: random numbers, true shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.random_pack import write_control_vector

D_SAE, K = 128, 8
Arrays = dict[str, NDArray[np.float32]]


def publish(folder: Path, width: int, n_layer: int) -> None:
    """Writes them all; SAEs of blocks 2 and 3 where a format holds several, else of block 2."""
    import torch

    rng = np.random.default_rng(0)

    def random(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def sae() -> Arrays:
        """As most write it: encoder (width, d_sae), decoder (d_sae, width)."""
        return {
            "W_enc": random(width, D_SAE),
            "W_dec": random(D_SAE, width),
            "b_enc": random(D_SAE),
            "b_dec": random(width),
        }

    place = _folder(folder / "qwen-scope")
    for layer in (2, 3):
        tensors = {name: torch.from_numpy(each.T.copy()) for name, each in sae().items()}
        torch.save(tensors, place / f"layer{layer}.sae.pt")
    shape = {"d_model": width, "d_sae": D_SAE, "k": K, "num_layers": n_layer}
    _json(place / "config.json", {"model_type": "topk_sae", "base_model": "tiny", **shape})

    place = _folder(folder / "saelens")
    save_file(sae(), place / "sae_weights.safetensors")
    config: dict[str, Any] = {
        "architecture": "standard",
        "d_in": width,
        "d_sae": D_SAE,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.2.hook_resid_post", "model_name": "tiny"},
    }
    _json(place / "cfg.json", config)

    place = _folder(folder / "gemma-scope" / "layer_2" / "width_128" / "average_l0_8")
    threshold = np.full(D_SAE, 0.5, np.float32)
    np.savez(place / "params.npz", **sae(), threshold=threshold)

    place = _folder(folder / "gemma-scope-2" / "resid_post" / "layer_2_width_128_l0_small")
    weights = {key.replace("W_", "w_"): value for key, value in sae().items()}
    save_file({**weights, "threshold": threshold}, place / "params.safetensors")
    said = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "width": D_SAE}
    _json(place / "config.json", {**said, "hf_hook_point_in": "model.layers.2.output", "l0": 8})

    place = _folder(folder / "sparsify" / "layers.2")
    arrays = sae()
    weights = {
        "encoder.weight": arrays["W_enc"].T.copy(),
        "encoder.bias": arrays["b_enc"],
        "W_dec": arrays["W_dec"],
        "b_dec": arrays["b_dec"],
    }
    save_file(weights, place / "sae.safetensors")
    _json(place / "cfg.json", {"d_in": width, "k": K, "num_latents": D_SAE, "activation": "topk"})

    place = _folder(folder / "llama-scope")
    arrays = sae()
    weights = {
        "encoder.weight": arrays["W_enc"].T.copy(),
        "encoder.bias": arrays["b_enc"],
        "decoder.weight": arrays["W_dec"].T.copy(),
        "decoder.bias": arrays["b_dec"],
    }
    save_file(weights, _folder(place / "checkpoints") / "final.safetensors")
    hyperparams = {
        "hook_point_in": "blocks.2.hook_resid_post",
        "hook_point_out": "blocks.2.hook_resid_post",
        "d_model": width,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.5,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 8.0, "out": 8.0},
        "sparsity_include_decoder_norm": True,
    }
    _json(place / "hyperparams.json", hyperparams)

    place = _folder(folder / "dictionary-learning")
    arrays = sae()
    tensors = {
        "encoder.weight": torch.from_numpy(arrays["W_enc"].T.copy()),
        "encoder.bias": torch.from_numpy(arrays["b_enc"]),
        "decoder.weight": torch.from_numpy(arrays["W_dec"].T.copy()),
        "bias": torch.from_numpy(arrays["b_dec"]),
    }
    torch.save(tensors, place / "ae.pt")
    trainer = {"dict_class": "AutoEncoder", "layer": 2, "activation_dim": width, "lm_name": "tiny"}
    trainer["dict_size"] = D_SAE
    buffer = {"io": "out", "d_submodule": width}
    _json(place / "config.json", {"trainer": trainer, "buffer": buffer})

    write_control_vector(folder / "repeng.gguf", {n: random(width) for n in (1, 2)})
    _variant(folder / "easysteer.gguf", {2: random(width)}, "controlvector", {
        "controlvector.method": "diffmean", "controlvector.normalize": 1.0,
    })  # fmt: skip
    _variant(folder / "glp.gguf", {n: random(width) for n in (1, 4)}, "glp", {
        "glp.mode": "add", "glp.spec_version": 1, "glp.rank": 1,
        "glp.hook_point": "residual_stream_post_layer", "glp.alpha_default": 2.0,
    })  # fmt: skip
    rows = {str(n): random(width).tolist() for n in (2, 3)}
    _json(folder / "cast.svec", {"model_type": "qwen3", "directions": rows})
    torch.save({n: torch.from_numpy(random(width)) for n in (1, 3)}, folder / "steering-vectors.pt")


def _variant(path: Path, rows: dict[int, Any], architecture: str, keys: dict[str, Any]) -> None:
    """A control vector as others write it, with keys of their own."""
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for layer, row in rows.items():
        writer.add_tensor(f"direction.{layer}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))
