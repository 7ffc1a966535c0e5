"""``scope convert calibrate``: features' statistics on the model that will run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    ContextOption,
    GpuLayersOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
)
from scope_runtime.cli.progress import reporting

if TYPE_CHECKING:
    from converters.calibrate import Calibration


def calibrate(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A feature pack.")],
    model: ModelOption,
    texts: Annotated[
        Path, typer.Option(metavar="FILE", help="The sample: .txt, one text a line; .jsonl.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The pack to write.  [default: PACK]"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each text through the model's chat template.")
    ] = False,
    drop_encoder: Annotated[
        bool,
        typer.Option(
            "--drop-encoder",
            help="Leave out whole encoders: thresholds stand in for the top-k, the pack is small.",
        ),
    ] = False,
    ctx: ContextOption = 512,
    threads: ThreadsOption = None,
    n_gpu_layers: GpuLayersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write firing rate, mean, maximum and quantiles of each feature into a pack.

    They are measured on the model file that will run, quantized as it is. Where the pack has a
    layer's whole encoder, the threshold that best stands in for its top-k is found as well. Where
    the pack had statistics before, those that are far off are named.

    \b
    Examples:
      scope convert calibrate packs/model.gguf -m model.gguf --texts sample.jsonl
      scope convert calibrate packs/model.gguf -m model.gguf --texts sample.txt --drop-encoder -o small.gguf
    """
    from converters.calibrate import calibrate as run

    with reporting(quiet=as_json) as report:
        done = run(
            pack,
            model,
            texts,
            out,
            chat=chat,
            drop_encoder=drop_encoder,
            n_ctx=ctx,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            report=report,
        )
    if as_json:
        print(json.dumps(calibration_data(done), ensure_ascii=False))
    else:
        _print(done)


def calibration_data(done: Calibration) -> dict[str, Any]:
    """A calibration as JSON-ready data."""
    features = []
    for number, layer in done.pack.layers.items():
        stats = layer.stats
        assert stats is not None
        best = done.thresholds.get(number)
        for i, id in enumerate(layer.ids.tolist()):
            levels = zip(stats.levels, stats.quantiles[i].tolist(), strict=True)
            features.append(
                {
                    "layer": number,
                    "id": id,
                    "label": layer.labels[i],
                    "firing_rate": float(stats.firing_rate[i]),
                    "mean": float(stats.mean[i]),
                    "max": float(stats.max[i]),
                    "quantiles": {f"{level:g}": value for level, value in levels},
                    "threshold": asdict(best[i]) if best else None,
                }
            )
    return {
        "path": done.pack.path,
        "sha256": done.pack.digest,
        "n_texts": done.n_texts,
        "n_tokens": done.n_tokens,
        "features": features,
        "shifts": [asdict(each) for each in done.shifts],
        "notes": list(done.notes),
    }


def _print(done: Calibration) -> None:
    from rich.console import Console
    from rich.table import Table

    from scope_runtime.packs import layer_name

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    table.add_column("id", justify="right")
    table.add_column("label", overflow="fold")
    for title in ("fires", "mean", "max", "threshold", "precision", "recall"):
        table.add_column(title, justify="right")
    for each in calibration_data(done)["features"]:
        best = each["threshold"]
        table.add_row(
            layer_name(each["layer"]),
            str(each["id"]),
            each["label"],
            f"{each['firing_rate']:.2%}",
            f"{each['mean']:.3g}",
            f"{each['max']:.3g}",
            *(
                (f"{best['value']:.3g}", f"{best['precision']:.3f}", f"{best['recall']:.3f}")
                if best
                else ("", "", "")
            ),
        )
    console.print(table)
    path = Path(done.pack.path)
    console.print(
        f"\n{path}: {path.stat().st_size:,} bytes, {done.n_texts} texts, {done.n_tokens:,} tokens",
        soft_wrap=True,
    )
    for shift in done.shifts:
        console.print(f"warning: {shift}", soft_wrap=True)
    for note in done.notes:
        console.print(f"note: {note}", soft_wrap=True)
