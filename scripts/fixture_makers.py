"""What `make_fixtures` runs inside each library's own environment: files, and what the library gives.

python fixture_makers.py LIBRARY FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

D_MODEL, D_SAE, K, N_TOKENS = 16, 32, 4, 24


def directions(seed: int, layers: tuple[int, ...] = (1, 2, 7)) -> dict[int, Any]:
    """Random directions, with numbers that a careless conversion would change."""
    rng = np.random.default_rng(seed)
    made = {layer: rng.standard_normal(D_MODEL).astype(np.float32) for layer in layers}
    made[layers[0]][:4] = [np.float32(1e-42), -0.0, np.finfo(np.float32).max, np.float32(0.1)]
    return made


def tokens() -> Any:
    """Residuals with a little structure: sparse sums of a few fixed directions, and noise."""
    import torch

    rng = torch.Generator().manual_seed(11)
    atoms = torch.randn(D_SAE, D_MODEL, generator=rng)
    chosen = (torch.rand(N_TOKENS * 8, D_SAE, generator=rng) < 0.1).float()
    noise = torch.randn(N_TOKENS * 8, D_MODEL, generator=rng)
    return chosen @ atoms + 0.2 * noise + 0.3


def randomise(module: Any, seed: int) -> None:
    """Random numbers into every parameter, so that no bias or threshold stays at a plain 0."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))


def train(module: Any, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> None:
    """A hundred steps of Adam on reconstruction and sparsity."""
    import torch

    x = tokens()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        z = encode(x)
        loss = (decode(z) - x).pow(2).mean() + 0.01 * z.abs().mean()
        loss.backward()
        optimizer.step()


def expect(
    folder: Path, encode: Callable[[Any], Any], decode: Callable[[Any], Any], h: Any = None
) -> None:
    """What the library gives: h, its activations, and what they add to the decoded residual."""
    import torch

    seen = tokens()[:N_TOKENS]
    with torch.no_grad():
        z = encode(seen if h is None else h(seen))
        added = decode(z) - decode(torch.zeros_like(z))
    named = {"h": seen, "z": z, "added": added}
    np.savez(folder / "expected.npz", **{key: each.float().numpy() for key, each in named.items()})


def make_sae_lens(out: Path) -> None:
    """Its own files, and those of sets that it has loaders for."""
    import torch
    from sae_lens import SAE

    def config(architecture: str, hook: str, **more: Any) -> dict[str, Any]:
        metadata = {"model_name": "tiny", "hook_name": hook, "sae_lens_version": "6.54.12"}
        metadata.update(more.pop("metadata", {}))
        plain = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
        return {"architecture": architecture, **plain, "metadata": metadata, **more}

    def write(name: str, cfg: dict[str, Any], *, trained: bool = False, h: Any = None) -> Path:
        folder = out / name
        sae = SAE.from_dict(cfg)
        randomise(sae, seed=len(name))
        if trained:
            train(sae, sae.encode, sae.decode)
        sae.save_model(folder)
        again = SAE.load_from_disk(folder)
        expect(folder, again.encode, again.decode, h)
        return folder

    post = "blocks.3.hook_resid_post"
    for architecture in ("standard", "gated", "jumprelu"):
        write(f"{architecture}-random", config(architecture, post))
        write(f"{architecture}-trained", config(architecture, post), trained=True)
    write("topk-random", config("topk", post, k=K))
    write("topk-trained", config("topk", post, k=K), trained=True)
    write("topk-rescaled", config("topk", post, k=K, rescale_acts_by_decoder_norm=True))
    write("resid-pre", config("standard", "blocks.3.hook_resid_pre", apply_b_dec_to_input=False))
    write("resid-pre-0", config("jumprelu", "blocks.0.hook_resid_pre"))
    kwargs = {
        "model_name": "gpt2-small",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    write(
        "centred",
        config("standard", post, metadata=kwargs),
        h=lambda x: x - x.mean(dim=-1, keepdim=True),
    )
    write_batch_topk(out / "batchtopk", post)
    # As versions before 6 wrote it: the hook point at the top level, top-k as an activation function.
    folder = write("before-6", config("topk", post, k=K))
    old = {
        "architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32",
        "device": "cpu", "model_name": "tiny", "hook_name": post, "hook_layer": 3,
        "hook_head_index": None, "activation_fn": "topk", "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True, "finetuning_scaling_factor": False,
        "normalize_activations": "none", "prepend_bos": True, "context_size": 8,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old))
    again = SAE.load_from_disk(folder)
    expect(folder, again.encode, again.decode)
    rng = torch.Generator().manual_seed(3)
    write_gemma_scope(out, rng)
    write_llama_scope(out, rng)


def write_batch_topk(folder: Path, hook: str) -> None:
    """Trained by its own class, saved for inference: as jumprelu."""
    import torch
    from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K, dtype="float32", device="cpu")
    )
    sae.cfg.metadata.hook_name = hook
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.02)
    for step in range(60):
        optimizer.zero_grad()
        known = {"coefficients": {}, "dead_neuron_mask": None, "n_training_steps": step}
        known |= {"is_logging_step": False}
        fields = TrainStepInput.__dataclass_fields__
        given = {key: value for key, value in known.items() if key in fields}
        sae.training_forward_pass(TrainStepInput(sae_in=tokens(), **given)).loss.backward()
        optimizer.step()
    sae.save_inference_model(folder)
    again = SAE.load_from_disk(folder)
    expect(folder, again.encode, again.decode)


def random_jumprelu(rng: Any) -> dict[str, Any]:
    """Weights as Gemma Scope names them."""
    import torch

    shapes = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_dec": (D_MODEL,)}
    weights = {key: 0.4 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    weights["b_enc"] = 0.1 * torch.randn(D_SAE, generator=rng)
    weights["threshold"] = torch.rand(D_SAE, generator=rng)
    return weights


def through_loader(folder: Path, loader: Any, repository: str, name: str, **overrides: Any) -> Any:
    """An SAE of another project through SAELens' loader, with the file taken from the folder."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors import safe_open

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        full = f"{subfolder}/{filename}" if subfolder else filename
        return str(folder / full.removeprefix(name).lstrip("/"))

    def shapes(_: str, filename: str) -> dict[str, list[int]]:
        with safe_open(local("", filename), "pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes

    def converter(path: Any, device: str, cfg_overrides: Any = None) -> Any:
        return loader(repository, name, device, False, {"dtype": "float32", **overrides})[:2]

    return SAE.load_from_disk(folder, converter=converter)


def write_gemma_scope(out: Path, rng: Any) -> None:
    """Gemma Scope, stored and deflated and of embeddings; Gemma Scope 2."""
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import save_file

    size = {"d_in": D_MODEL, "d_sae": D_SAE}
    for case, name, save in (
        ("gemma-scope", "layer_5/width_16k/average_l0_71", np.savez),
        ("gemma-scope-deflated", "layer_6/width_16k/average_l0_70", np.savez_compressed),
        ("gemma-scope-embedding", "embedding/width_4k/average_l0_6", np.savez),
    ):
        folder = out / case / name
        folder.mkdir(parents=True)
        weights = random_jumprelu(rng)
        if case.endswith("deflated"):  # as early files have it
            weights = {
                ("w" + key[1:] if key[0] == "W" else key): each for key, each in weights.items()
            }
        save(folder / "params.npz", **{key: each.numpy() for key, each in weights.items()})
        loader = loaders.gemma_2_sae_huggingface_loader
        sae = through_loader(folder, loader, "google/gemma-scope-2b-pt-res", name, **size)
        # The model multiplies embeddings by sqrt(d_model); the loader folds that in.
        expect(folder, sae.encode, sae.decode)
    name = "resid_post/layer_9_width_16k_l0_small"
    folder = out / "gemma-scope-2" / name
    folder.mkdir(parents=True)
    weights = {
        ("w" + key[1:] if key[0] == "W" else key): each
        for key, each in random_jumprelu(rng).items()
    }
    save_file(weights, folder / "params.safetensors")
    said = {
        "architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.9.output", "width": D_SAE, "l0": 10,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said))
    loader = loaders.gemma_3_sae_huggingface_loader
    sae = through_loader(folder, loader, "google/gemma-scope-2-1b-pt", name)
    expect(folder, sae.encode, sae.decode)
    assert torch.is_tensor(sae.W_enc)


def write_llama_scope(out: Path, rng: Any) -> None:
    """hyperparams.json as published, and the factor of the input folded by the library."""
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import save_file

    name = "Llama3_1-8B-Base-L8R-8x"
    folder = out / "llama-scope" / name
    (folder / "checkpoints").mkdir(parents=True)
    weights = random_jumprelu(rng)
    stored = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.bias": weights["b_dec"],
    }
    save_file(stored, folder / "checkpoints" / "final.safetensors")
    said = {
        "d_model": D_MODEL, "d_sae": D_SAE, "act_fn": "jumprelu", "jump_relu_threshold": 0.2021484375,
        "hook_point_in": "blocks.8.hook_resid_post", "hook_point_out": "blocks.8.hook_resid_post",
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 6.3, "out": 6.3},
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "top_k": 50,
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(said))
    loader = loaders.llama_scope_sae_huggingface_loader
    sae = through_loader(folder, loader, "fnlp/Llama3_1-8B-Base-LXR-8x", name, d_sae=D_SAE)
    sae.fold_activation_norm_scaling_factor(D_MODEL**0.5 / 6.3)
    expect(folder, sae.encode, sae.decode)
    assert torch.is_tensor(sae.W_enc)


def make_sparsify(out: Path) -> None:
    """A set of two layers, an MLP's and a transcoder's."""
    sys.modules["sparsify.trainer"] = types.SimpleNamespace(SaeTrainer=None, Trainer=None)  # type: ignore[assignment]
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    def dense(top: Any) -> Any:
        z = torch.zeros(*top.top_acts.shape[:-1], D_SAE)
        return z.scatter(-1, top.top_indices, top.top_acts)

    for name, trained, transcode in (
        ("layers.2", False, False), ("layers.5", True, False),
        ("layers.5.mlp", False, False), ("layers.7", False, True),
    ):  # fmt: skip
        folder = out / ("transcoder" if transcode else "set") / name
        coder = SparseCoder(D_MODEL, SparseCoderConfig(num_latents=D_SAE, k=K, transcode=transcode))
        randomise(coder, seed=len(name) + trained)

        def encode(x: Any, coder: Any = coder) -> Any:
            return dense(coder.encode(x))

        def decode(z: Any, coder: Any = coder) -> Any:
            return coder.decode(*z.topk(K, dim=-1))

        if trained:
            train(coder, encode, decode)
        coder.save_to_disk(folder)
        coder = SparseCoder.load_from_disk(folder)
        expect(
            folder, lambda x, coder=coder: encode(x, coder), lambda z, coder=coder: decode(z, coder)
        )


def make_dictionary_learning(out: Path) -> None:
    """One folder for each class, as its training loop lays them out."""
    sys.modules["dictionary_learning.buffer"] = types.SimpleNamespace(ActivationBuffer=None)  # type: ignore[assignment]
    import torch
    from dictionary_learning import dictionary as plain
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    groups = [D_SAE // 2, D_SAE // 2]
    for cls, sizes in (
        (plain.AutoEncoder, ()), (plain.AutoEncoderNew, ()), (plain.GatedAutoEncoder, ()),
        (plain.JumpReluAutoEncoder, ()), (AutoEncoderTopK, (K,)), (BatchTopKSAE, (K,)),
        (MatryoshkaBatchTopKSAE, (K, groups)),
    ):  # fmt: skip
        for trained in (False, True):
            folder = out / f"{cls.__name__}-{'trained' if trained else 'random'}"
            folder.mkdir()
            made = cls(D_MODEL, D_SAE, *sizes)
            randomise(made, seed=len(cls.__name__))
            if trained:
                train(made, made.encode, made.decode)
            if hasattr(made, "threshold") and sizes:
                made.threshold = torch.tensor(0.25)
            torch.save(made.state_dict(), folder / "ae.pt")
            trainer = {
                "dict_class": cls.__name__, "layer": 4, "lm_name": "tiny/model", "device": "cpu",
                "activation_dim": D_MODEL, "dict_size": D_SAE, "submodule_name": "resid_post_layer_4",
            }  # fmt: skip
            trainer |= {"k": K} if sizes else {}
            buffer = {"d_submodule": D_MODEL, "io": "out", "ctx_len": 8}
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": buffer}))
            again = cls.from_pretrained(str(folder / "ae.pt"))
            expect(folder, again.encode, again.decode)


def make_repeng(out: Path) -> None:
    """Its own file, and ours read and written by it."""
    from repeng import ControlVector

    ControlVector("qwen3", directions(6)).export_gguf(out / "repeng.gguf")
    ours = ControlVector.import_gguf(out / "ours.gguf")
    ours.export_gguf(out / "ours-by-repeng.gguf")
    for name, made in (("repeng", directions(6)), ("ours", ours.directions)):
        np.savez(out / f"{name}.npz", **{str(layer): each for layer, each in made.items()})


def make_steering_vectors(out: Path) -> None:
    """The ways in which people save its object; the library has none of its own."""
    import torch
    from steering_vectors import SteeringVector

    made = {layer: torch.from_numpy(each) for layer, each in directions(7, (0, 3)).items()}
    vector = SteeringVector(layer_activations=made, layer_type="decoder_block")
    torch.save(vector.layer_activations, out / "layers.pt")
    fields = {"layer_activations": vector.layer_activations, "layer_type": vector.layer_type}
    torch.save(fields, out / "fields.pt")
    torch.save({**fields, "layer_type": "mlp"}, out / "mlp.pt")
    torch.save(vector, out / "object.pt")
    np.savez(out / "expected.npz", **{str(layer): each.numpy() for layer, each in made.items()})


def make_by_hand(out: Path) -> None:
    """EasySteer's and GLP's GGUF files and CAST's JSON, from the projects' sources."""
    from gguf import GGUFWriter

    def write(name: str, made: dict[int, Any], architecture: str, keys: dict[str, Any]) -> None:
        writer = GGUFWriter(out / name, architecture)
        for key, value in keys.items():
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
            add[type(value)](key, value)
        for layer, each in made.items():
            writer.add_tensor(f"direction.{layer}", each)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    made = directions(8)
    content = hashlib.sha256(b"".join(made[layer].tobytes() for layer in sorted(made))).hexdigest()
    easysteer = {"model_hint": "unknown", "method": "diffmean", "layer_count": len(made)}
    write(
        "easysteer.gguf", made, "controlvector",
        {f"controlvector.{key}": value for key, value in easysteer.items()}
        | {"controlvector.normalize": 1.0},
    )  # fmt: skip
    glp: dict[str, Any] = {
        "general.type": "controlvector", "glp.mode": "project", "glp.spec_version": 1, "glp.rank": 1,
        "glp.hook_point": "residual_stream_post_layer", "glp.alpha_default": 2.0,
        "glp.content_sha256": content, "general.base_model.0.name": "Tiny",
    }  # fmt: skip
    write("glp.gguf", made, "controlvector", glp)
    write("glp-add.gguf", made, "glp", {**glp, "glp.mode": "add"})
    for name, key, value in (
        ("mode", "glp.mode", "rotate"), ("hook", "glp.hook_point", "ffn_out_pre_residual"),
        ("rank", "glp.rank", 2), ("digest", "glp.content_sha256", "0" * 64),
    ):  # fmt: skip
        write(f"glp-bad-{name}.gguf", made, "controlvector", {**glp, key: value})
    lists = {str(layer): each.tolist() for layer, each in made.items()}
    spread = dict.fromkeys(lists, 0.5)
    cast = {"model_type": "qwen3", "directions": lists, "explained_variances": spread}
    (out / "cast.svec").write_text(json.dumps(cast))
    np.savez(out / "expected.npz", **{str(layer): each for layer, each in made.items()})
    write_qwen_scope(out / "qwen-scope")


def write_qwen_scope(folder: Path) -> None:
    """A set of two layers, and what its documented formula gives: top-k of W_enc h + b_enc."""
    import torch

    folder.mkdir()
    said = {"model_type": "topk_sae", "k": K, "d_sae": D_SAE, "d_model": D_MODEL, "num_layers": 9}
    (folder / "config.json").write_text(json.dumps(said))
    rng = torch.Generator().manual_seed(9)
    for layer in (2, 7):
        shapes = {"W_enc": (D_SAE, D_MODEL), "W_dec": (D_MODEL, D_SAE)}
        weights = {key: 0.4 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}
        weights["b_enc"] = 0.1 * torch.randn(D_SAE, generator=rng)
        weights["b_dec"] = 0.1 * torch.randn(D_MODEL, generator=rng)
        torch.save(weights, folder / f"layer{layer}.sae.pt")

        def encode(h: Any, weights: dict[str, Any] = weights) -> Any:
            pre = h @ weights["W_enc"].T + weights["b_enc"]
            kept = pre.topk(K, dim=-1)
            return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)

        def decode(z: Any, weights: dict[str, Any] = weights) -> Any:
            return z @ weights["W_dec"].T + weights["b_dec"]

        expect(folder, encode, decode)
        (folder / "expected.npz").rename(folder / f"expected-{layer}.npz")


def make_nnsight(out: Path) -> None:
    """Residuals of the example model behind every block, by nnsight on Transformers, in F32."""
    import torch
    from nnsight import NNsight

    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    from tests.support.example_torch import torch_model

    model = NNsight(torch_model(root / "examples" / "tiny-qwen3" / "tiny-qwen3-f16.gguf"))
    tokens = np.random.default_rng(0).integers(4, 1000, 40).astype(np.int32)
    saved = {}
    for layer, block in enumerate(model.model.layers):
        with torch.no_grad(), model.trace(torch.from_numpy(tokens[None].astype(np.int64))):
            seen = block.output.save()
        h = seen[0] if isinstance(seen, tuple) else seen
        saved[str(layer)] = h.reshape(len(tokens), -1).float().numpy()
    np.savez(out / "tiny-qwen3.npz", tokens=tokens, **saved)


MAKERS: dict[str, Callable[[Path], None]] = {
    "sae-lens": make_sae_lens,
    "eai-sparsify": make_sparsify,
    "dictionary-learning": make_dictionary_learning,
    "repeng": make_repeng,
    "steering-vectors": make_steering_vectors,
    "nnsight": make_nnsight,
    "by-hand": make_by_hand,
}


if __name__ == "__main__":
    MAKERS[sys.argv[1]](Path(sys.argv[2]))
