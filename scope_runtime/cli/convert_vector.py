"""``scope convert vector``: control vectors out of features and of other vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.options import JsonOption
from scope_runtime.cli.progress import reporting
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.vectors import ControlVector

LayersOption = Annotated[
    str | None, typer.Option("--layers", metavar="A-B", help="Layers: 20, 18-24 or 4,8,12-14.")
]
MAX_LAYERS = 1024


def vector(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="An SAE, set or pack with --feature; else vector files, as a path or name=path.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", "-f", metavar="LAYER:ID", help="A feature; repeat it."),
    ] = None,
    layers: LayersOption = None,
    combine: Annotated[
        str | None,
        typer.Option(
            "--combine", metavar="EXPRESSION", help="Names, numbers, + - * and parentheses."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Factor on the whole.")] = 1.0,
    orthogonal_to: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A vector or pack that the result must not move, layer by layer; repeat it.",
        ),
    ] = None,
    project_out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A vector or pack; all its directions are taken out of every layer; repeat it.",
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Length 1 per layer, before alpha.")
    ] = False,
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="llama.cpp's name of the model, for the file.")
    ] = "",
    skip_digests: Annotated[
        bool, typer.Option("--skip-digests", help="Leave out the SAE files' SHA-256.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a control vector that a stock llama.cpp loads (--control-vector-scaled).

    A feature's direction acts at its own layer, or with --layers at each of those. The recipe is
    kept in the file, so that it can be made again.

    \b
    Examples:
      scope convert vector sae/ --feature 20:6159 --alpha 4 --layers 18-24 -o chinese.gguf
      scope convert vector a.gguf b.svec --combine '0.7*a - 0.2*b' --orthogonal-to c.gguf -o d.gguf
      scope convert vector old=v1.gguf new=v2.gguf --combine 'new - old' --normalise -o diff.gguf
    """
    from converters.features import parse_feature
    from converters.vector import (
        VectorOptions,
        combined_vector,
        name_sources,
        vector_of_features,
    )

    options = VectorOptions(tuple(orthogonal_to or ()), tuple(project_out or ()), normalise, alpha)
    with reporting(quiet=as_json) as report:
        if feature:
            if len(source) > 1 or combine is not None:
                raise UsageError("features are taken out of one source, without --combine")
            written = vector_of_features(
                source[0],
                [parse_feature(each) for each in feature],
                out,
                layers=parse_layers(layers),
                options=options,
                model_hint=architecture,
                digests=not skip_digests,
                report=report,
            )
        else:
            if layers is not None:
                raise UsageError("--layers goes with --feature")
            if combine is None and len(source) > 1:
                raise UsageError("several vectors need --combine")
            named = name_sources(source if combine is not None else [f"v={source[0]}"])
            written = combined_vector(named, combine or "v", out, options=options, report=report)
    print_vector(written, as_json=as_json)


def parse_layers(text: str | None) -> list[int] | None:
    """``20``, ``18-24`` or ``4,8,12-14`` as layers.

    Raises:
        UsageError: it is none of these.
    """
    if text is None:
        return None
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = (each.strip() for each in part.partition("-"))
        ends = [first, last] if dash else [first, first]
        if not all(each.isascii() and each.isdigit() and len(each) <= 4 for each in ends):
            raise UsageError("cannot read the layers", found=repr(text), expected="18-24")
        if int(ends[0]) > int(ends[1]):
            raise UsageError("the layers run backwards", found=repr(part))
        out += range(int(ends[0]), int(ends[1]) + 1)
    return out


def print_vector(written: ControlVector, *, as_json: bool) -> None:
    """What was written, for people or as one JSON document."""
    import numpy as np

    lengths = {layer: float(np.linalg.norm(row)) for layer, row in written.layers.items()}
    if as_json:
        data = {
            "path": written.path,
            "sha256": written.digest,
            "model_hint": written.model_hint,
            "width": written.width,
            "layers": [{"layer": layer, "length": each} for layer, each in lengths.items()],
            "metadata": dict(written.metadata),
        }
        print(json.dumps(data, ensure_ascii=False))
        return
    for layer, length in lengths.items():
        print(f"layer {layer}: length {length:.4g}")
    print(f"{written.path}: {Path(written.path).stat().st_size:,} bytes, sha256 {written.digest}")
