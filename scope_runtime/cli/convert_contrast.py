"""``scope convert contrast``: a control vector from two kinds of text, out of llama.cpp itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.cli.convert_vector import LayersOption, parse_layers
from scope_runtime.cli.options import (
    ContextOption,
    GpuLayersOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
)
from scope_runtime.cli.progress import reporting


class MethodOption(str, Enum):
    """Values of ``--method``; what they mean is `converters.contrast.Method`'s to say."""

    mean = "mean"
    pca = "pca"


def contrast(
    model: ModelOption,
    positive: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Texts of the wanted kind: .txt, one a line; .jsonl."),
    ],
    negative: Annotated[Path, typer.Option(metavar="FILE", help="Texts of the other kind.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    method: Annotated[
        MethodOption,
        typer.Option(
            help="mean: difference of the means; pca: main axis of the pairs' differences."
        ),
    ] = MethodOption.mean,
    layers: LayersOption = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each text through the model's chat template.")
    ] = False,
    ctx: ContextOption = 1024,
    threads: ThreadsOption = None,
    n_gpu_layers: GpuLayersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a control vector of what differs between two kinds of text, by their last tokens.

    The residuals come from the model file itself, as llama.cpp runs it. pca takes pairs: line n of
    one file belongs to line n of the other, and the direction has length 1. separation says how
    often a positive text lies further along the direction than a negative one: 0.5 is chance.

    \b
    Examples:
      scope convert contrast -m model.gguf --positive formal.txt --negative casual.txt -o formal.gguf
      scope convert contrast -m model.gguf --positive p.txt --negative n.txt --method pca --chat -o v.gguf
    """
    from converters.contrast import Method, contrast_vector

    with reporting(quiet=as_json) as report:
        made = contrast_vector(
            model,
            positive,
            negative,
            out,
            method=Method(method.value),
            layers=parse_layers(layers),
            chat=chat,
            n_ctx=ctx,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            report=report,
        )
    written = made.vector
    if as_json:
        data = {
            "path": written.path,
            "sha256": written.digest,
            "layers": [asdict(each) for each in made.layers],
            "metadata": dict(written.metadata),
        }
        print(json.dumps(data, ensure_ascii=False))
        return
    print("layer  length  separation  explained")
    for each in made.layers:
        print(f"{each.layer:5}  {each.length:6.4g}  {each.separation:10.3f}  {each.explained:9.3f}")
    print(f"{written.path}: {Path(written.path).stat().st_size:,} bytes, sha256 {written.digest}")
