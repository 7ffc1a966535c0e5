"""What people call features: labels out of files that others write, and into a pack."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from converters.features import read_features
from scope_runtime.errors import Location, UsageError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.pack_types import MAX_LABEL_CHARACTERS, FeaturePack, layer_name
from scope_runtime.packs import read_pack, write_pack
from scope_runtime.policy.model import EMBEDDING

MAX_BYTES = 256 << 20
_GZIP = b"\x1f\x8b"
_NEURONPEDIA_LAYER = re.compile(r"(\d{1,4})(?:-.*)?")

Labels = Mapping[tuple[int, int], str]
"""By layer and id."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pack whose labels were written.

    Attributes:
        pack: read back.
        before: SHA-256 of what it was.
        changed: features whose label differs now.
        absent: how many labels are of features that the pack does not hold.
    """

    pack: FeaturePack
    before: str
    changed: tuple[tuple[int, int], ...]
    absent: int


def label_pack(path: str | Path, labels: Labels, out: str | Path | None = None) -> Labelled:
    """Write a pack with other labels; all else stays as it is, byte for byte.

    Args:
        path: of the pack.
        labels: those that change; an empty one takes the label away. Of features that the pack does not
            hold they are counted and left out.
        out: the new file; by default it is put in the old one's place, whole or not at all.

    Raises:
        PackError: no pack, or a label that no pack may hold.
    """
    pack = read_pack(path)
    changed: list[tuple[int, int]] = []
    layers = []
    for number, layer in pack.layers.items():
        names = list(layer.labels)
        for row, id in enumerate(layer.ids.tolist()):
            label = labels.get((number, id), names[row])
            if label != names[row]:
                names[row] = label
                changed.append((number, id))
        layers.append(replace(layer, labels=tuple(names)))
    there = {(n, id) for n, layer in pack.layers.items() for id in layer.ids.tolist()}
    if changed or out is not None:
        write_pack(out or path, pack.model, layers, pack.provenance)
    return Labelled(read_pack(out or path), pack.digest, tuple(changed), len(labels.keys() - there))


def read_labels(path: str | Path) -> dict[tuple[int, int], str]:
    """Labels of a file, told by its content; compressed with gzip or not.

    - CSV with the columns layer, id, label;
    - JSON: ``[{"layer": 3, "id": 767, "label": "…"}]`` or ``{"3:767": "…"}``;
    - Neuronpedia's exports, JSON or JSON lines: ``{"layer": "20-…-res-16k", "index": "767",
      "description": "…"}``; of several descriptions of one feature the first counts.

    Blanks and control characters become single blanks, and what is too long for a pack is cut.

    Raises:
        UsageError: with file and line.
    """
    name = str(path)
    with open_regular(path, UsageError) as file:
        raw = bytes(read_exactly(file, 0, MAX_BYTES + 1))
    if len(raw) > MAX_BYTES:
        raise UsageError("the labels are too long", location=Location(name))
    if raw.startswith(_GZIP):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as reason:
            raise UsageError("damaged", location=Location(name), found=str(reason)) from None
    elif raw.lstrip()[:1] not in (b"{", b"["):
        return _unique((each.layer, each.id, each.label) for each in read_features(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise UsageError("no UTF-8", location=Location(name), found=str(reason)) from None
    return _unique(_of_json(text, name))


def _unique(rows: Iterable[tuple[int, int, str]]) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    for layer, id, label in rows:
        found.setdefault((layer, id), _tidied(label))
    return found


def _tidied(label: str) -> str:
    """On one line, without what a terminal would obey, no longer than a pack may hold."""
    line = "".join(each if each.isprintable() else " " for each in label)
    line = " ".join(line.split())
    if len(line) > MAX_LABEL_CHARACTERS:
        line = line[: MAX_LABEL_CHARACTERS - 1].rstrip() + "…"
    return line


def _of_json(text: str, name: str) -> Iterable[tuple[int, int, str]]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _row(_line(line, Location(name, number)), Location(name, number))
        return
    rows = value
    if isinstance(value, dict):
        rows = value.get("explanations")
        if rows is None and ("index" in value or "id" in value):
            rows = [value]
        if rows is None:
            for place, label in value.items():
                layer, _, id = place.partition(":")
                yield _row({"layer": layer, "id": id, "label": label}, Location(name))
            return
    if not isinstance(rows, list):
        _fail(Location(name), type(rows).__name__)
    for row in rows:
        yield _row(row, Location(name))


def _line(line: str, location: Location) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise UsageError("no JSON", location=location, found=str(reason)[:120]) from None


def _row(row: Any, location: Location) -> tuple[int, int, str]:
    if not isinstance(row, dict):
        _fail(location, repr(row)[:60])
    layer, id = _layer(row.get("layer")), row.get("id", row.get("index"))
    label = row.get("label", row.get("description"))
    number = str(id)
    if (
        layer is None
        or isinstance(id, bool)
        or not (number.isascii() and number.isdigit() and len(number) <= 9)
        or not isinstance(label, str)
    ):
        _fail(location, repr({k: row.get(k) for k in ("layer", "id", "index", "label")})[:120])
    return layer, int(number), label


def _layer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if value in (EMBEDDING, "embedding"):
        return EMBEDDING
    match = _NEURONPEDIA_LAYER.fullmatch(str(value))
    return int(match[1]) if match else None


def _fail(location: Location, found: str) -> NoReturn:
    raise UsageError(
        "no label",
        location=location,
        found=found,
        expected='layer, id and label, or "LAYER:ID": "label"',
    )


def place_name(layer: int, id: int) -> str:
    """``LAYER:ID``, as commands take it."""
    return f"{layer_name(layer)}:{id}"
