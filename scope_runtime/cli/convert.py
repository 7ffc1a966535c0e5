"""``scope convert``: published SAEs to files that the runtime loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli import convert_calibrate, convert_contrast, convert_vector, convert_verify
from scope_runtime.cli.options import JsonOption
from scope_runtime.cli.progress import reporting

if TYPE_CHECKING:
    from converters.inspect import Inspection
    from scope_runtime.packs import FeaturePack, PackLayer

app = typer.Typer(
    name="convert",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Turn published SAEs and steering vectors into files that llama.cpp and the runtime load.",
)
app.command()(convert_vector.vector)
app.command()(convert_contrast.contrast)
app.command()(convert_calibrate.calibrate)
app.command()(convert_verify.verify)


@app.command()
def pack(
    sae_dir: Annotated[
        Path,
        typer.Argument(metavar="SAE_DIR", help="A folder or file of SAEs, or hf:owner/name[@rev]."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The pack to write.")],
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", "-f", metavar="LAYER:ID=LABEL", help="A feature; repeat it."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="CSV", help="Features with columns layer, id, label."),
    ] = None,
    exact_gate: Annotated[
        list[int] | None,
        typer.Option(
            "--exact-gate",
            metavar="LAYER",
            help="Take the layer's whole encoder, for the SAE's own top-k gate; repeat it.",
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(metavar="NAME", help="llama.cpp's name of the model: qwen3.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="The model (GGUF), instead of a name."),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="k of the top-k, if the set does not say.")
    ] = None,
    n_layer: Annotated[
        int | None,
        typer.Option("--layers", min=1, help="The model's blocks, if the set does not say."),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", min=-1, help="The SAE's block (-1: embedding), if it does not say."
        ),
    ] = None,
    input_scale: Annotated[
        float | None,
        typer.Option("--input-scale", help="What the SAE multiplies its input with, likewise."),
    ] = None,
    skip_digests: Annotated[
        bool, typer.Option("--skip-digests", help="Leave out the SAE files' SHA-256.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a feature pack: the rows of the features that policies use.

    Read are Qwen-Scope, SAELens, Gemma Scope, sparsify, Llama Scope and dictionary_learning.
    Without --exact-gate a ReLU stands in for an SAE's top-k; the pack says so.

    \b
    Examples:
      scope convert pack sae/ -f 20:6159=chinese -f 18:4211=refusal --architecture qwen3 -o p.gguf
      scope convert pack sae/ --features list.csv --exact-gate 20 --model model.gguf -o p.gguf
    """
    from converters.features import ReadOptions, parse_feature, read_features
    from converters.pack import convert_pack

    wanted = [parse_feature(each) for each in feature or []]
    if features is not None:
        wanted += read_features(features)
    with reporting(quiet=as_json) as report:
        written = convert_pack(
            sae_dir,
            wanted,
            out,
            exact_gate_layers=exact_gate or [],
            architecture=architecture,
            model=model,
            k=k,
            n_layer=n_layer,
            options=ReadOptions(layer=layer, input_scale=input_scale),
            digests=not skip_digests,
            report=report,
        )
    if as_json:
        print(json.dumps(pack_data(written), ensure_ascii=False))
    else:
        _print_pack(written)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pack, vector, model or SAE.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a file is, from what is in it: shapes, gate, features, digest.

    \b
    Examples:
      scope convert inspect packs/model.gguf
      scope convert inspect sae/layer4.sae.pt --json
    """
    from converters.inspect import inspect_file

    with reporting(quiet=as_json) as report:
        found = inspect_file(file, report(f"digest of {file.name}"))
    if as_json:
        print(json.dumps({**asdict(found), "facts": dict(found.facts)}, ensure_ascii=False))
    else:
        _print_inspection(found)


def pack_data(pack: FeaturePack) -> dict[str, Any]:
    """A pack as JSON-ready data, without its numbers."""
    return {
        "path": pack.path,
        "sha256": pack.digest,
        "version": pack.version,
        "model": asdict(pack.model),
        "provenance": dict(pack.provenance),
        "layers": [
            {
                "layer": layer.layer,
                "gate": str(layer.gate),
                "k": layer.k,
                "d_sae": layer.d_sae,
                "bytes": _layer_bytes(layer),
                "calibrated": layer.stats is not None,
                "features": [
                    {"id": id, "label": label}
                    for id, label in zip(layer.ids.tolist(), layer.labels, strict=True)
                ],
                "notes": list(layer.notes),
            }
            for layer in pack.layers.values()
        ],
    }


def _layer_bytes(layer: PackLayer) -> int:
    arrays = (layer.enc, layer.enc_bias, layer.dec, layer.full_enc, layer.full_enc_bias)
    return sum(each.nbytes for each in arrays if each is not None)


def _print_pack(pack: FeaturePack) -> None:
    from rich.console import Console
    from rich.table import Table

    from converters.inspect import gate_words
    from scope_runtime.packs import layer_name

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    table.add_column("id", justify="right")
    table.add_column("label", overflow="fold")
    table.add_column("gate")
    table.add_column("bytes", justify="right")
    for layer in pack.layers.values():
        shown, n_bytes = layer_name(layer.layer), f"{_layer_bytes(layer):,}"
        for id, label in zip(layer.ids.tolist(), layer.labels, strict=True):
            table.add_row(shown, str(id), label, gate_words(pack, layer.layer), n_bytes)
            shown = n_bytes = ""
    console.print(table)
    model = pack.model
    console.print(f"\n{pack.path}: {Path(pack.path).stat().st_size:,} bytes, sha256 {pack.digest}")
    console.print(f"for {model.architecture}, {model.layers} layers of width {model.width}")
    for layer in pack.layers.values():
        for note in layer.notes:
            console.print(f"note: layer {layer_name(layer.layer)}: {note}")


def _print_inspection(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(f"{found.path}: {found.kind}", style="bold")
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")
    for name, value in found.facts:
        facts.add_row(name, value)
    console.print(facts)
    if found.features:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("layer", "id", "label", "gate"):
            table.add_column(title, overflow="fold")
        for layer, id, label, gate in found.features:
            table.add_row(layer, str(id), label, gate)
        console.print()
        console.print(table)
    for note in found.notes:
        console.print(f"note: {note}")
