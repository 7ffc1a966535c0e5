"""Rebuild the example from nothing: model, SAEs, GGUF files, features, figures. Every step is seeded.

`python build.py --out build` writes everything into `build/`: `work/` holds what is not shipped (the
checkpoint, the SAEs of all layers, the F32 file), the rest is what this folder ships. Needs torch,
transformers, tokenizers, gguf, rich and llama-cpp-python (for quantizing); about an hour on two CPU
cores. A step whose result is there already is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
QUANTIZED = "Q8_0"
# glibc gives large buffers back to the system after every tensor; keeping them is a quarter faster.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "OMP_WAIT_POLICY": "passive",
}


# (steps, peak learning rate, seed); each stage goes on from the one before, with fresh texts.
STAGES = (
    (1000, 3e-3, 1),
    (1200, 3e-3, 2),
    (220, 1.5e-3, 5),
    (320, 2e-3, 9),
    (200, 1.5e-3, 13),
    (500, 2e-3, 17),
)


def steps(out: Path) -> list[tuple[str, list[str | Path], Path]]:
    """(script, arguments, a file that shows it is done), in order."""
    work = out / "work"
    model, saes = work / "model", work / "saes"
    using = ["--model", model, "--saes", saes]
    weights = {
        "f32": [],
        "f16": ["--gguf", out / "tiny-qwen3-f16.gguf"],
        "quantized": ["--gguf", out / f"tiny-qwen3-{QUANTIZED.lower()}.gguf"],
    }
    evaluations = [
        (
            "reference_eval.py",
            [
                *using,
                "--features",
                out,
                *extra,
                "--prompts-out",
                out / "heldout.json",
                "--out",
                out / f"figures-{name}.json",
            ],
            out / f"figures-{name}.json",
        )
        for name, extra in weights.items()
    ]
    training, before = [], None
    for number, (n_steps, rate, seed) in enumerate(STAGES, start=1):
        folder = model if number == len(STAGES) else work / f"model-{number}"
        resume = ["--resume", before] if before else []
        settings = ["--steps", n_steps, "--lr", rate, "--seed", seed]
        training.append(
            ("train.py", [*resume, "--out", folder, *settings], folder / "training.json")
        )
        before = folder
    return [
        *training,
        (
            "export_gguf.py",
            ["--model", model, "--out", out, "--quantize", QUANTIZED, "--check"],
            out / "tiny-qwen3-f16.gguf",
        ),
        ("train_sae.py", ["--model", model, "--out", saes], saes / "quality.json"),
        ("find_features.py", [*using, "--out", out], out / "features.json"),
        *evaluations,
    ]


def collect(out: Path) -> None:
    """Puts the shipped SAE layer in place: the one that the drift features use most."""
    work, target = out / "work", out / "sae"
    drift = json.loads((out / "features.json").read_text())["roles"]["drift"]["features"]
    layers = [f["layer"] for f in drift]
    layer = max(sorted(set(layers)), key=layers.count)
    target.mkdir(exist_ok=True)
    for name in ("config.json", f"layer{layer}.sae.pt"):
        shutil.copy(work / "saes" / name, target / name)
    if (f32 := out / "tiny-qwen3-f32.gguf").exists():
        f32.rename(work / f32.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    console = Console()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for script, arguments, done in steps(out):
        if done.exists():
            console.print(f"[dim]{script}: {done.name} is there, skipped[/dim]")
            continue
        console.rule(f"{script} → {done.name}")
        subprocess.run(
            [sys.executable, HERE / script, *map(str, arguments)],
            check=True,
            cwd=HERE,
            env=os.environ | ENVIRONMENT,
        )
    collect(out)


if __name__ == "__main__":
    main()
