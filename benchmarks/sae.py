"""How fast a whole SAE layer encodes, exact top-k: against PyTorch in F32 and against the memory's speed; and whether
it finds the same latents.

    python -m benchmarks.sae            # three minutes
    python -m benchmarks.sae --quick    # a small layer, to see that it runs

Layers of random numbers are written as Qwen-Scope publishes them, in F32, F16 and BF16, and read from there. The ways
take turns, so that what slows the machine slows them alike; ratios are of neighbours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.report import machine
from scope_runtime.paired import paired_ratio
from scope_runtime.sae import FullLayer, SaeLayers

SHAPES = ((2048, 32_768), (4096, 65_536))
K = 50
N_BATCH = 64
ASKED = {"times PyTorch F32": 1.5, "of the limit": 0.6}
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@contextmanager
def published(width: int, d_sae: int) -> Iterator[dict[str, Path]]:
    """A set of one layer for each type, of the same numbers before rounding."""
    rng = torch.Generator().manual_seed(0)
    enc = torch.randn(d_sae, width, generator=rng) / width**0.5
    config = {"model_type": "topk_sae", "k": K, "d_model": width, "d_sae": d_sae, "num_layers": 1}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary, name) for name in TYPES}
        for name, folder in folders.items():
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            tensors = {
                "W_enc": enc.to(TYPES[name]),
                "W_dec": torch.zeros(1).expand(width, d_sae),  # takes no room, and is not asked for
                "b_enc": torch.full((d_sae,), -0.1),
            }
            torch.save(tensors, folder / "layer0.sae.pt")
        yield folders


def opened_layer(folder: Path, threads: int) -> FullLayer:
    """The one layer of a set, on so many threads."""
    layer = SaeLayers.open(folder).layer(0)
    return FullLayer(
        layer=0,
        encoder=layer.encoder,
        gate=layer.gate,
        k=layer.k,
        file=layer.file,
        decoder=layer.decoder,
        n_threads=threads,
    )


def agreement(folders: dict[str, Path], threads: int) -> dict[str, dict[str, float]]:
    """How many of `N_BATCH` tokens have other latents than PyTorch finds in F32, one by one and at once.

    A tie: the latents that differ lie within F32's rounding of each other, by their products in F64.
    """
    out = {}
    for name, folder in folders.items():
        weights = torch.load(folder / "layer0.sae.pt", weights_only=True)
        enc, bias = weights["W_enc"].float(), weights["b_enc"]
        layer = opened_layer(folder, threads)
        layer.preselect()
        h = np.random.default_rng(2).standard_normal((N_BATCH, layer.width)).astype(np.float32)
        top = torch.topk(torch.from_numpy(h) @ enc.T + bias, K).indices.tolist()
        at_once = layer.encode(h)
        n_differ, gap = 0, 0.0
        for token, residual in enumerate(h):
            for ids in (at_once.token(token)[0], layer.encode(residual).token(0)[0]):
                differ = sorted({*ids.tolist()} ^ {*top[token]})
                if differ:
                    n_differ += 1
                    exact = (
                        enc[differ].double() @ torch.from_numpy(residual).double() + bias[differ]
                    )
                    gap = max(gap, float(exact.max() - exact.min()))
        out[f"{name} file"] = {
            "n_compared": 2 * N_BATCH,
            "n_differ": n_differ,
            "largest_gap": gap,
        }
    return out


def ways(folders: dict[str, Path], threads: int) -> dict[str, Callable[[np.ndarray], object]]:
    """What is timed, each given residuals (n_tokens, width)."""

    def opened(name: str) -> FullLayer:
        return opened_layer(folders[name], threads)

    torch.set_num_threads(threads)
    weights = torch.load(folders["F32"] / "layer0.sae.pt", weights_only=True)
    enc, bias = weights["W_enc"], weights["b_enc"]
    preselected = opened("F32")
    preselected.preselect()
    return {
        "reading the F32 rows": lambda h: enc.sum(),
        "PyTorch F32": lambda h: torch.topk(torch.from_numpy(h) @ enc.T + bias, K),
        "F32 file": opened("F32").encode,
        "F32 file, preselected": preselected.encode,
        "F16 file": opened("F16").encode,
        "BF16 file": opened("BF16").encode,
    }


def measure(width: int, d_sae: int, seconds: float, threads: int) -> dict[str, object]:
    """Times every way in turns, for single tokens and for batches, as long as it is told."""
    rng = np.random.default_rng(1)
    found: dict[str, object] = {"width": width, "d_sae": d_sae, "k": K}
    with published(width, d_sae) as folders:
        found["top-k other than PyTorch's"] = agreement(folders, threads)
        timed = ways(folders, threads)
        for n_tokens in (1, N_BATCH):
            names = [n for n in timed if n_tokens == 1 or n != "F32 file, preselected"]
            times: dict[str, list[list[float]]] = {name: [] for name in names}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times[names[0]]) < 3:
                h = rng.standard_normal((n_tokens, width)).astype(np.float32)
                for name in names:
                    begun = time.perf_counter()
                    timed[name](h)
                    times[name].append([time.perf_counter() - begun])
            # The first round touches pages for the first time.
            found[f"{n_tokens} tokens"] = figures(
                {name: each[1:] for name, each in times.items()}, 4 * width * d_sae, n_tokens
            )
    return found


def figures(
    times: dict[str, list[list[float]]], f32_bytes: int, n_tokens: int
) -> dict[str, dict[str, float]]:
    """Per way tokens a second; against PyTorch; and the share of what the memory's speed allows."""
    read, other = times["reading the F32 rows"], times["PyTorch F32"]
    out: dict[str, dict[str, float]] = {
        "memory": {
            "gb_per_s": round(f32_bytes / median(each[0] for each in read) / 1e9, 2),
            "n_rounds": len(read),
        }
    }
    for name, taken in times.items():
        if name == "reading the F32 rows":
            continue
        rows_bytes = 1.0 if name in ("PyTorch F32", "F32 file") else 0.5
        faster = paired_ratio(other, taken)
        limit = paired_ratio([[rows_bytes * each[0]] for each in read], taken)
        out[name] = {
            "ms": round(1e3 * median(each[0] for each in taken), 3),
            "tokens_per_s": round(n_tokens / median(each[0] for each in taken), 1),
            "times_pytorch_f32": round(faster.median, 3),
            "times_pytorch_f32_lower": round(faster.lower, 3),
            "times_pytorch_f32_upper": round(faster.upper, 3),
        }
        if n_tokens == 1:
            out[name]["of_the_limit"] = round(limit.median, 3)
    return out


def main(arguments: list[str]) -> int:
    """Measures and prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small layer, for a moment")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each of four measurements")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the figures here")
    args = parser.parse_args(arguments)
    shapes = ((64, 512),) if args.quick else SHAPES
    seconds = 0.05 if args.quick else args.seconds
    found = {
        "machine": machine(),
        "threads": args.threads,
        "asked": ASKED,
        "layers": [measure(*shape, seconds, args.threads) for shape in shapes],
    }
    text = json.dumps(found, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
