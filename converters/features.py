"""What every reader gives and every writer takes: SAE layers, and the features wanted of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scope_runtime.errors import Location, UsageError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.pack_types import F32Array, I64Array
from scope_runtime.policy.model import EMBEDDING, GateKind
from scope_runtime.sae.encoder import WholeEncoder

if TYPE_CHECKING:
    from converters.probe import Probe

MAX_LIST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """A feature that somebody wants: a layer (0-based, or `EMBEDDING`), its number there, a label."""

    layer: int
    id: int
    label: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SaeRows:
    """Features of one layer, every convention of the SAE folded in.

    Attributes:
        ids: (n,).
        enc: (n, width), F32.
        enc_bias: (n,), F32; ``z = gate(enc @ h + enc_bias)``.
        dec: directions as stored, (n, width), F32.
        thresholds: per feature, where the SAE has them, (n,), F32.
    """

    ids: I64Array
    enc: F32Array
    enc_bias: F32Array
    dec: F32Array
    thresholds: F32Array | None = None


class SaeLayer(Protocol):
    """One layer of an SAE, still in its file: nothing is read but the rows that are asked for.

    Attributes:
        layer: 0-based block whose output it was trained on, or `EMBEDDING`.
        k: of its top-k, if it has one and says so.
        file: its weights.
        files: what else it took: configuration.
        kind: the format, in a word.
        notes: sentences on what is not exact.
        hook_point: where it was trained, as its publisher says it.
        base_model: what it was trained on, as the publisher names it.
    """

    @property
    def layer(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def gate(self) -> GateKind: ...
    @property
    def k(self) -> int | None: ...
    @property
    def file(self) -> Path: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def hook_point(self) -> str: ...
    @property
    def base_model(self) -> str | None: ...

    def rows(self, ids: I64Array) -> SaeRows:
        """Some features. Raises PackError if one is not in the SAE or holds a NaN."""
        ...

    def encoder(self) -> tuple[F32Array, F32Array]:
        """The whole encoder, folded: (d_sae, width), mapped where the format allows, and (d_sae,)."""
        ...

    def whole(self) -> WholeEncoder:
        """The same for encoding at run time: mapped in the file's own type where rows need no folding.

        Rows are not looked through: a NaN in them is found by whoever multiplies with them.
        """
        ...

    def tensors(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """Name, shape and type of every tensor in the file."""
        ...


class SaeSet(Protocol):
    """The SAEs of a model's layers.

    Attributes:
        path: folder.
        kind: the format, in a word.
        layers: those that are there, ascending.
        base_model: what the SAEs were trained on, as the publisher names it.
        n_layer: blocks of that model, if the set says so.
        files: other files of the set that belong to its provenance: configuration, licence.
    """

    @property
    def path(self) -> Path: ...
    @property
    def kind(self) -> str: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def base_model(self) -> str | None: ...
    @property
    def n_layer(self) -> int | None: ...
    @property
    def files(self) -> tuple[Path, ...]: ...

    def open(self, layer: int) -> SaeLayer:
        """One layer. Raises PackError if it is not there or cannot be trusted."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Steering vectors: a direction for each of some layers.

    Attributes:
        path: the file.
        kind: the format, in a word.
        digest: SHA-256 of the file, lower-case hex.
        layers: by 0-based block whose output they belong to, (width,), F32, ascending.
        operation: ``add``: the direction is added, times a strength; ``project``: the residual's
            part along it is taken out (what a policy calls ``ablate``).
        alpha: the strength that the file recommends, if it does.
        model_hint: architecture or name of the model they were made for, if the file says so.
        metadata: what else the file says of itself, sorted.
    """

    path: Path
    kind: str
    digest: str
    layers: Mapping[int, F32Array]
    operation: str = "add"
    alpha: float | None = None
    model_hint: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def width(self) -> int:
        """Width of the residual stream that the directions are for."""
        return next(iter(self.layers.values())).size


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a person knows of an SAE that its files do not say.

    Attributes:
        k: of its top-k.
        layer: block whose output it was trained on, or `EMBEDDING`.
        input_scale: what its input is multiplied with before the encoder.
    """

    k: int | None = None
    layer: int | None = None
    input_scale: float | None = None


class Reader(Protocol):
    """One format: whether a file is of it, from what is in it, and how to read it.

    Attributes:
        kind: the format, in a word.
    """

    kind: str

    def recognise(self, probe: Probe) -> str | None:
        """What in the file shows that it is of this format, or None."""
        ...

    def open(self, probe: Probe, options: ReadOptions) -> SaeLayer | Vectors:
        """The layer or vectors in it. Raises PackError or UsageError."""
        ...


def parse_feature(text: str) -> FeatureRequest:
    """A feature from ``LAYER:ID`` or ``LAYER:ID=label``. Raises UsageError."""
    place, _, label = text.partition("=")
    layer, colon, id = place.partition(":")
    number = _layer(layer)
    if not colon or number is None or not _is_count(id):
        raise UsageError("cannot read the feature", found=repr(text), expected="LAYER:ID=label")
    return FeatureRequest(number, int(id), label.strip())


def read_features(path: str | Path) -> tuple[FeatureRequest, ...]:
    """Features from a CSV file with the columns ``layer``, ``id`` and, if wanted, ``label``.

    Raises:
        UsageError: with file and line.
    """
    name = str(path)
    with open_regular(path, UsageError) as file:
        raw = bytes(read_exactly(file, 0, MAX_LIST_BYTES + 1))
    if len(raw) > MAX_LIST_BYTES:
        raise UsageError("the list of features is too long", location=Location(name))
    try:
        reader = csv.DictReader(raw.decode("utf-8-sig").splitlines(), strict=True)
        names = reader.fieldnames or ()
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as reason:
        raise UsageError("no CSV", location=Location(name), found=str(reason)) from None
    if not {"layer", "id"} <= set(names):
        raise UsageError(
            "the first line does not name the columns",
            location=Location(name, 1),
            found=repr(",".join(names)),
            expected="layer,id or layer,id,label",
        )
    return tuple(_row(row, Location(name, line)) for line, row in enumerate(rows, start=2))


def _row(row: Mapping[str, str | None], location: Location) -> FeatureRequest:
    missing = [key for key in ("layer", "id") if not row.get(key)]
    if missing:
        raise UsageError(
            f"the column {missing[0]!r} is missing or empty",
            location=location,
            expected="the columns layer, id and label",
        )
    layer, id = _layer(str(row["layer"])), str(row["id"]).strip()
    if layer is None or not _is_count(id):
        found = f"{row['layer']!r}, {row['id']!r}"
        raise UsageError("no feature", location=location, found=found, expected="two whole numbers")
    return FeatureRequest(layer, int(id), (row.get("label") or "").strip())


def _layer(text: str) -> int | None:
    text = text.strip()
    if text == "embedding":
        return EMBEDDING
    return int(text) if _is_count(text) else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def by_layer(features: tuple[FeatureRequest, ...]) -> dict[int, tuple[FeatureRequest, ...]]:
    """Features grouped by layer, layers ascending, order within a layer kept.

    Raises:
        UsageError: a feature is there twice.
    """
    seen: set[tuple[int, int]] = set()
    for each in features:
        if (each.layer, each.id) in seen:
            raise UsageError("a feature is asked for twice", found=f"{each.layer}:{each.id}")
        seen.add((each.layer, each.id))
    layers = sorted({each.layer for each in features})
    return {layer: tuple(each for each in features if each.layer == layer) for layer in layers}


def ids_of(features: tuple[FeatureRequest, ...]) -> I64Array:
    """Their numbers, (n,)."""
    return np.array([each.id for each in features], dtype=np.int64)
