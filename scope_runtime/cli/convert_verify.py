"""``scope convert verify``: a file proved on a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.cli.options import GpuLayersOption, JsonOption, ModelOption, ThreadsOption
from scope_runtime.cli.progress import reporting


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A control vector or feature pack.")],
    model: ModelOption,
    threads: ThreadsOption = None,
    n_gpu_layers: GpuLayersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Open a file again and prove it on a model: layers, gates, and that llama.cpp takes it.

    A control vector's layers must be those that its recipe says, and llama.cpp's own logits with it
    must equal those of adding each direction after its block. A pack's features must measure
    through the hook what its rows give. Exit code 1 if anything does not hold.

    \b
    Examples:
      scope convert verify vectors/chinese.gguf --model model.gguf
      scope convert verify packs/model.gguf --model model.gguf --json
    """
    from converters.verify import verify as run

    with reporting(quiet=as_json) as report:
        found = run(file, model, n_threads=threads, n_gpu_layers=n_gpu_layers, report=report)
    if as_json:
        print(json.dumps({"ok": found.ok, **asdict(found)}, ensure_ascii=False))
    else:
        print(f"{found.path}: {found.kind}")
        for check in found.checks:
            print(f"{'ok' if check.ok else 'FAILED':6}  {check.what}: {check.words}")
    if not found.ok:
        raise typer.Exit(1)
