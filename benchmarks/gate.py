"""What an exact top-k gate over a whole SAE layer costs a decode: nearly nothing, or one read of half the encoder.

    python -m benchmarks.gate            # three minutes, after the model was made
    python -m benchmarks.gate --quick    # a tiny model and layer, to see that it runs

Contexts on one model take turns token by token: without a hook, twice; with a policy that mutes a feature far from the
k largest, which a few hundred latents show; and with one whose feature is always among them, which takes every latent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks.arms import DOSE, Arm
from benchmarks.random_q4_model import QWEN3_0_6B, TINY, model_file
from benchmarks.report import machine
from scope_runtime.compile import compile_policy
from scope_runtime.files import cache_folder
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.probe import prove
from scope_runtime.packs import PackLayer, PackModel, write_pack
from scope_runtime.paired import paired_ratio
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.model import GateKind

K = 50
OPEN, CLOSED = 0, 1
BASE = "no hook"
ASKED = {"gate closed": 1.02, "gate open": 1.10}
N_CTX = 512
BLOCK_TOKENS = 4


def write_files(folder: Path, architecture: str, n_layer: int, width: int, d_sae: int) -> None:
    """A pack with a whole random encoder at the middle layer, and a policy for each feature."""
    rng = np.random.default_rng(2)
    enc = rng.standard_normal((d_sae, width), dtype=np.float32) * np.float32(width**-0.5)
    bias = np.zeros(d_sae, np.float32)
    bias[[OPEN, CLOSED]] = 1e4, -1e4
    # With such biases the activation is no activation: the direction is as much shorter.
    dec = rng.standard_normal((2, width), dtype=np.float32) * np.float32(DOSE * width**-0.5 / 1e4)
    ids = np.array([OPEN, CLOSED])
    layer = PackLayer(
        n_layer // 2, ids, ("", ""), enc[ids], bias[ids], dec, GateKind.TOPK,
        k=K, full_enc=enc, full_enc_bias=bias,
    )  # fmt: skip
    write_pack(folder / "pack.gguf", PackModel(architecture, n_layer, width), [layer])
    for name, id in (("open", OPEN), ("closed", CLOSED)):
        policy = {
            "apiVersion": "scope/v1",
            "kind": "SteeringPolicy",
            "metadata": {"name": name},
            "spec": {
                "features": {"f": {"pack": "pack.gguf", "layer": n_layer // 2, "id": id}},
                "rules": [{"name": "mute-f", "mute": "f"}],
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(policy))


def measure(model: Path, folder: Path, d_sae: int, seconds: float, threads: int) -> dict[str, Any]:
    """Times a decode in every arm, in turns, as long as it is told."""
    owner = Context(model, ContextOptions(N_CTX, N_CTX, N_CTX, n_threads=threads))
    api, shape = owner.llama.api, owner.shape
    write_files(folder, shape.architecture, shape.n_layer, shape.n_embd, d_sae)
    hooked: list[Context] = []
    plain: list[Any] = []

    def plain_arm(name: str) -> Arm:
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.offload_kqv, params.no_perf = 1, False, True
        plain.append(api.llama_init_from_model(owner._model, params))
        return Arm(name, api, plain[-1])

    def gated_arm(name: str, policy: str) -> Arm:
        context = Context(owner.info.path, owner.options, weights=owner)
        hooked.append(context)
        prove(context)
        program = compile_policy(load_policy(folder / f"{policy}.yaml"), shape)
        context.live_hook.install(program.blob)
        return Arm(name, api, context._ctx, context)

    arms = [
        plain_arm(BASE),
        plain_arm("no hook again"),
        gated_arm("gate closed", "closed"),
        gated_arm("gate open", "open"),
    ]
    batch = api.llama_batch_init(N_CTX, 0, 1)
    rng = np.random.default_rng(3)
    times: dict[str, list[list[float]]] = {arm.name: [] for arm in arms}
    n_tokens = N_CTX
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[BASE]) < 3:
        if n_tokens + BLOCK_TOKENS > N_CTX:
            if times[BASE]:
                for arm in arms:
                    arm.end()
            n_tokens = 32
            prompt = rng.integers(0, owner.n_vocab, n_tokens).tolist()
            for arm in arms:
                arm.begin(n_tokens)
                arm.decode(batch, prompt)
        tokens = rng.integers(0, owner.n_vocab, BLOCK_TOKENS).tolist()
        for arm in arms:
            times[arm.name].append([median(arm.decode(batch, [token]) for token in tokens)])
        n_tokens += BLOCK_TOKENS
    api.llama_batch_free(batch)
    for ctx in plain:
        api.llama_free(ctx)
    for context in (*hooked, owner):
        context.close()
    return {
        name: {
            "ms_per_token": round(1e3 * median(each[0] for each in taken), 3),
            "n_blocks": len(taken),
            **{
                key: round(value, 4)
                for key, value in asdict(paired_ratio(taken, times[BASE])).items()
            },
        }
        for name, taken in times.items()
    }


def main(arguments: list[str]) -> int:
    """Measures and prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny, for a moment")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--out", type=Path, help="also write the figures here")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "benchmarks")
    args = parser.parse_args(arguments)
    d_sae, seconds = (512, 0.05) if args.quick else (args.latents, args.seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = model_file(TINY if args.quick else QWEN3_0_6B, folder if args.quick else args.cache)
        arms = measure(model, folder, d_sae, seconds, args.threads)
    found = {
        "machine": machine(),
        "threads": args.threads,
        "d_sae": d_sae,
        "k": K,
        "asked": ASKED,
        "arms": arms,
        "met": {name: arms[name]["median"] <= most for name, most in ASKED.items()},
    }
    text = json.dumps(found, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
