"""Where directions come from: vector files of any format, features of SAEs and of packs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.combine import Rows
from converters.features import FeatureRequest, Vectors, by_layer, ids_of
from converters.load import load, open_source
from converters.recipe import Input, input_of
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import open_regular
from scope_runtime.gguf_check import read_header
from scope_runtime.pack_types import F32Array
from scope_runtime.packs import ARCHITECTURE as FEATURE_PACK
from scope_runtime.packs import read_pack


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Directions of a layer each, and what they were read from.

    Attributes:
        layers: (width,) per layer.
        inputs: the files, for the recipe.
        model_hint: architecture of the model that they are for, if it is known.
    """

    layers: Mapping[int, F32Array]
    inputs: tuple[Input, ...]
    model_hint: str | None = None


def read_vectors(path: Path) -> Directions:
    """A file of steering vectors, in any format that is read.

    Raises:
        PackError: it is none, or one that is not made for adding.
    """
    vectors = load(path)
    if not isinstance(vectors, Vectors):
        raise PackError(
            "an SAE, not a steering vector",
            location=Location(str(path)),
            hint="Take features out of it with --feature LAYER:ID",
        )
    if vectors.operation != "add":
        raise PackError(
            "made for another operation than adding, which is all that llama.cpp does",
            location=Location(str(path)),
            found=vectors.operation,
        )
    return Directions(vectors.layers, (input_of(vectors.path),), vectors.model_hint)


def read_features(
    path: Path, features: tuple[FeatureRequest, ...], *, digests: bool = True
) -> Directions:
    """Decoder directions of an SAE's or a pack's features, summed per layer.

    Raises:
        PackError: a layer or feature is not there.
    """
    wanted = by_layer(features)
    if is_pack(path):
        pack = read_pack(path)
        layers = {}
        for layer, requests in wanted.items():
            here = pack.layer(layer)
            rows = [here.dec[here.row(each.id)] for each in requests]
            layers[layer] = _sum(rows)
        return Directions(layers, (input_of(path),), pack.model.architecture)
    source = open_source(path, layers=tuple(wanted))
    if isinstance(source, Vectors):
        raise UsageError(
            "steering vectors have no features", location=Location(str(path)), found=source.kind
        )
    layers, inputs = {}, []
    for layer, requests in wanted.items():
        sae = source.open(layer)
        layers[layer] = _sum(list(sae.rows(ids_of(requests)).dec))
        inputs += [input_of(file, digest=digests, folder=True) for file in (sae.file, *sae.files)]
    return Directions(layers, tuple(dict.fromkeys(inputs)))


def read_protected(path: Path) -> Rows:
    """Rows that something is to be kept clear of, per layer.

    Of a pack these are the directions of its features and also their encoder rows: only what is
    orthogonal to an encoder row leaves that feature's activation as it was.

    Raises:
        PackError: neither a pack nor steering vectors.
    """
    if not is_pack(path):
        return {layer: row[None, :] for layer, row in read_vectors(path).layers.items()}
    layers = read_pack(path).layers
    return {number: np.concatenate([one.dec, one.enc]) for number, one in layers.items()}


def is_pack(path: Path) -> bool:
    """Whether this is a feature pack."""
    if path.is_dir() or str(path).startswith("hf:"):
        return False
    with open_regular(path, PackError) as file:
        if file.read(4) != b"GGUF":
            return False
        architecture = read_header(file, str(path), PackError).values.get("general.architecture")
    return bool(architecture == FEATURE_PACK)


def _sum(rows: list[F32Array]) -> F32Array:
    if len(rows) == 1:
        return rows[0]
    return np.asarray(np.sum(np.stack(rows), axis=0, dtype=np.float64), dtype=np.float32)
