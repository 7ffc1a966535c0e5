"""Writing feature packs; the format is described in `scope_runtime.packs`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType

from scope_runtime.errors import Location, PackError
from scope_runtime.gguf_write import Entry, number, text, write_gguf
from scope_runtime.pack_types import (
    ARCHITECTURE,
    VERSION,
    PackLayer,
    PackModel,
    check_fits,
    check_pack_model,
    check_text,
    layer_name,
)

_PROVENANCE_KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def write_pack(
    path: str | Path,
    model: PackModel,
    layers: Iterable[PackLayer],
    provenance: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> None:
    """Write a feature pack: the same input gives the same bytes, and a failure leaves no file.

    Args:
        path: replaced if it exists.
        model: what the SAE was trained on.
        layers: in any order, each layer once.
        provenance: keys of small letters, digits, ``_`` and ``.``; any text.

    Raises:
        PackError: the pack would be refused by `read_pack`, or the file cannot be written.
    """
    try:
        check_pack_model(model)
        ordered = sorted(layers, key=lambda each: each.layer)
        if not ordered:
            raise PackError("a feature pack without features")
        for one, other in itertools.pairwise(ordered):
            if one.layer == other.layer:
                raise PackError(f"layer {layer_name(one.layer)} is there twice")
        for layer in ordered:
            check_fits(layer, model)
        entries = [*_model(model), *_provenance(provenance), *_features(ordered)]
        for layer in ordered:
            entries += _layer(layer)
        tensors = [each for layer in ordered for each in _tensors(layer)]
    except PackError as error:
        error.location = error.location or Location(str(path))
        raise
    write_gguf(path, ARCHITECTURE, entries, tensors)


def _model(model: PackModel) -> list[Entry]:
    entries = [
        number(f"{ARCHITECTURE}.version", VERSION),
        text(f"{ARCHITECTURE}.model.architecture", model.architecture),
        number(f"{ARCHITECTURE}.model.layers", model.layers),
        number(f"{ARCHITECTURE}.model.width", model.width),
    ]
    if model.name is not None:
        entries.append(text(f"{ARCHITECTURE}.model.name", model.name))
    return entries


def _provenance(provenance: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[Entry]:
    pairs = sorted(provenance.items() if isinstance(provenance, Mapping) else provenance)
    for key, value in pairs:
        if not _PROVENANCE_KEY.fullmatch(key):
            raise PackError("a key of the provenance cannot be written", found=repr(key))
        check_text(value, f"the provenance {key!r}")
    if len({key for key, _ in pairs}) != len(pairs):
        raise PackError("a key of the provenance is there twice")
    return [text(f"{ARCHITECTURE}.provenance.{key}", value) for key, value in pairs]


def _features(layers: Sequence[PackLayer]) -> list[Entry]:
    prefix = f"{ARCHITECTURE}.feature"
    of_layer = [layer.layer for layer in layers for _ in layer.labels]
    ids = [each for layer in layers for each in layer.ids.tolist()]
    labels = [label for layer in layers for label in layer.labels]
    return [
        Entry(f"{prefix}.layer", of_layer, GGUFValueType.INT32, array=True),
        Entry(f"{prefix}.id", ids, GGUFValueType.INT64, array=True),
        Entry(f"{prefix}.label", labels, GGUFValueType.STRING, array=True),
    ]


def _layer(layer: PackLayer) -> list[Entry]:
    prefix = f"{ARCHITECTURE}.layer.{layer_name(layer.layer)}"
    entries = [text(f"{prefix}.gate", layer.gate.value)]
    if layer.k is not None:
        entries.append(number(f"{prefix}.k", layer.k))
    d_sae = layer.d_sae if layer.full_enc is None else len(layer.full_enc)
    if d_sae is not None:
        entries.append(number(f"{prefix}.d_sae", d_sae))
    if layer.stats is not None and layer.stats.levels:
        entries.append(
            Entry(
                f"{prefix}.stats.levels",
                list(layer.stats.levels),
                GGUFValueType.FLOAT32,
                array=True,
            )
        )
    if layer.notes:
        entries.append(
            Entry(f"{prefix}.notes", list(layer.notes), GGUFValueType.STRING, array=True)
        )
    return entries


def _tensors(layer: PackLayer) -> list[tuple[str, npt.NDArray[np.float32]]]:
    prefix = f"layer.{layer_name(layer.layer)}"
    tensors = [
        (f"{prefix}.enc", layer.enc),
        (f"{prefix}.enc_bias", layer.enc_bias),
        (f"{prefix}.dec", layer.dec),
    ]
    if layer.thresholds is not None:
        tensors.append((f"{prefix}.gate", layer.thresholds))
    if layer.stats is not None:
        stats = layer.stats
        table = np.column_stack([stats.max, stats.mean, stats.firing_rate, stats.quantiles])
        tensors.append((f"{prefix}.stats", table.astype(np.float32)))
    if layer.full_enc is not None and layer.full_enc_bias is not None:
        tensors.append((f"{prefix}.full_enc", layer.full_enc))
        tensors.append((f"{prefix}.full_enc_bias", layer.full_enc_bias))
    return tensors
