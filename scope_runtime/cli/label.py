"""``scope label``: what the features of a pack are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.options import JsonOption
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.inspect.labels import Labelled
    from scope_runtime.pack_types import FeaturePack


def label(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="The feature pack.")],
    new: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="LAYER:ID=LABEL", help="A label; repeat it."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="Labels: CSV, JSON, or an export of Neuronpedia."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The new pack.  [default: in its place]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the labels of a pack's features, or write other ones.

    A label belongs to the pack, so writing one makes another file: it is put in the old one's place
    whole or not at all, its digest changes, and with it the revision of every policy that names it.
    An empty label takes one away. What is imported of features that the pack does not hold is counted
    and left out; --set goes before --import.

    \b
    Examples:
      scope label packs/model.gguf
      scope label packs/model.gguf --set "20:6159=switches to Chinese"
      scope label packs/model.gguf --import explanations.jsonl.gz -o packs/labelled.gguf
    """
    from scope_runtime.inspect.labels import label_pack, read_labels
    from scope_runtime.packs import read_pack

    if not new and labels is None:
        if out is not None:
            raise UsageError("there is nothing to write", hint="Give labels: --set or --import")
        read = read_pack(pack)
        print(json.dumps(_data(read), ensure_ascii=False)) if as_json else _print(read)
        return
    wanted = {} if labels is None else read_labels(labels)
    wanted |= _given(new or [], pack)
    done = label_pack(pack, wanted, out)
    if as_json:
        told = {"before": done.before, "changed": len(done.changed), "absent": done.absent}
        print(json.dumps({**_data(done.pack), **told}, ensure_ascii=False))
    else:
        _say(done)


def _given(new: list[str], pack: Path) -> dict[tuple[int, int], str]:
    """Labels of the command line; each must be of a feature that is there."""
    from converters.features import parse_feature
    from scope_runtime.packs import read_pack

    read = read_pack(pack)
    given = {}
    for text in new:
        if "=" not in text:
            raise UsageError("no label", found=repr(text), expected="LAYER:ID=LABEL")
        each = parse_feature(text)
        read.layer(each.layer).row(each.id)
        given[each.layer, each.id] = each.label
    return given


def _data(pack: FeaturePack) -> dict[str, object]:
    from scope_runtime.pack_types import layer_name

    return {
        "path": pack.path,
        "sha256": pack.digest,
        "features": [
            {"layer": layer_name(number), "id": id, "label": label}
            for number, layer in pack.layers.items()
            for id, label in zip(layer.ids.tolist(), layer.labels, strict=True)
        ],
    }


def _print(pack: FeaturePack) -> None:
    from rich.console import Console
    from rich.table import Table

    from scope_runtime.inspect.labels import place_name

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("feature", no_wrap=True)
    table.add_column("label", overflow="fold")
    for number, layer in pack.layers.items():
        for id, label in zip(layer.ids.tolist(), layer.labels, strict=True):
            table.add_row(place_name(number, id), label)
    Console(highlight=False, markup=False).print(table)


def _say(done: Labelled) -> None:
    from scope_runtime.inspect.labels import place_name

    names = {
        (number, id): label
        for number, layer in done.pack.layers.items()
        for id, label in zip(layer.ids.tolist(), layer.labels, strict=True)
    }
    for place in done.changed:
        print(f"{place_name(*place)}: {names[place] or '(no label)'}")
    if done.absent:
        print(f"{done.absent:,} labels are of features that the pack does not hold")
    if not done.changed:
        print(f"{done.pack.path}: no label differs")
        return
    print(f"{done.pack.path}: {len(done.changed):,} labels written")
    print(
        f"sha256 {done.before} before, {done.pack.digest} now: policies that name it get a new revision"
    )
