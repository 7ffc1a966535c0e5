"""A set of whole SAE layers, from a feature pack or from what researchers publish."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.pack_types import F32Array, FeaturePack, I64Array, PackLayer, layer_name
from scope_runtime.packs import read_pack
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.sae.encoder import WholeEncoder
from scope_runtime.sae.layer import FullLayer

if TYPE_CHECKING:
    from converters.features import ReadOptions, SaeSet
    from scope_runtime.llama.checks import ModelInfo

_PART = r"(?:embedding|\d{1,4}(?:-\d{1,4})?)"
_SPEC = re.compile(rf"(?P<path>.+):(?P<layers>{_PART}(?:,{_PART})*)")


class SaeLayers:
    """Whole SAE layers of one model; each is opened when it is first asked for.

    Attributes:
        path: of the set or pack, as it was given, without layers.
        kind: the format, in a word.
        layers: those that are asked for, ascending: 0-based blocks, or `EMBEDDING`.
        base_model: what they were trained on, as the publisher names it.
        n_layer: blocks of that model, if the set says so.
        architecture: llama.cpp's name of it, if the set says so.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        layers: tuple[int, ...],
        open_layer: Callable[[int], FullLayer],
        *,
        base_model: str | None = None,
        n_layer: int | None = None,
        architecture: str | None = None,
    ) -> None:
        """Take what was found; `open` is the way in."""
        self.path, self.kind, self.layers = path, kind, layers
        self.base_model, self.n_layer, self.architecture = base_model, n_layer, architecture
        self._open_layer = open_layer
        self._opened: dict[int, FullLayer] = {}

    @classmethod
    def open(cls, spec: str | Path, options: ReadOptions | None = None) -> SaeLayers:
        """Open a set by what a person writes.

        Args:
            spec: ``PATH`` or ``PATH:LAYERS``: a feature pack with whole encoders, or a folder, file or
                ``hf:owner/name`` of published SAEs as `converters.load` reads them; layers as
                ``3``, ``0-3``, ``1,5,embedding``. All by default.
            options: what the files do not say.

        Raises:
            PackError: no such file, nothing that is known, damaged, or without one of the layers.
            UsageError: the layers cannot be read, or must be named; steering vectors; PyTorch is
                needed for ``.pt`` files and not installed.
        """
        path, wanted = parse_spec(str(spec))
        from converters.features import Vectors
        from converters.load import open_source
        from converters.sources import is_pack

        if Path(path).exists() and is_pack(Path(path)):
            return _from_pack(cls, path, read_pack(path), wanted)
        found = open_source(path, options=options, layers=wanted)
        if isinstance(found, Vectors):
            raise UsageError(
                "steering vectors have no features",
                location=Location(path),
                found=found.kind,
                expected="an SAE",
            )
        return _from_set(cls, path, found, wanted)

    def layer(self, layer: int) -> FullLayer:
        """One of them. Raises PackError if it is not there, or cannot be used as a whole."""
        if layer not in self.layers:
            raise _missing(self.path, layer, self.layers)
        if layer not in self._opened:
            self._opened[layer] = self._open_layer(layer)
        return self._opened[layer]

    def __iter__(self) -> Iterator[FullLayer]:
        return (self.layer(each) for each in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def check_fits(self, model: ModelInfo) -> None:
        """Raise PackError if these are not of this model: architecture, layers or width differ."""
        n_layer = model.n_layer if self.n_layer is None else self.n_layer
        checks: list[tuple[str, object, object]] = [
            ("architecture", model.architecture, self.architecture or model.architecture),
            ("number of layers", model.n_layer, max(n_layer, self.layers[-1] + 1)),
            *(("width", model.n_embd, each.width) for each in self),
        ]
        for what, found, expected in checks:
            if found != expected:
                raise PackError(
                    f"the SAEs are not of this model: the {what} differs",
                    location=Location(model.path),
                    found=str(found),
                    expected=f"{expected}, as in {self.path}",
                )


def parse_spec(spec: str) -> tuple[str, tuple[int, ...] | None]:
    """The path and the layers of ``PATH[:LAYERS]``; None: all. Raises UsageError."""
    match = _SPEC.fullmatch(spec)
    if match is None or match["path"] == "hf":
        return spec, None
    layers: set[int] = set()
    for part in match["layers"].split(","):
        if part == "embedding":
            layers.add(EMBEDDING)
            continue
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise UsageError("the layers run backwards", found=repr(part), expected="FIRST-LAST")
        layers.update(range(int(first), int(last or first) + 1))
    return match["path"], tuple(sorted(layers))


def _chosen(path: str, there: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    for layer in wanted or ():
        if layer not in there:
            raise _missing(path, layer, there)
    return wanted or there


def _missing(path: str, layer: int, there: tuple[int, ...]) -> PackError:
    return PackError(
        f"layer {layer_name(layer)} is not in the set",
        location=Location(path),
        expected="one of " + ", ".join(map(layer_name, there)),
    )


def _from_set(
    cls: type[SaeLayers], path: str, found: SaeSet, wanted: tuple[int, ...] | None
) -> SaeLayers:
    def open_layer(number: int) -> FullLayer:
        sae = found.open(number)
        return FullLayer(
            layer=number,
            encoder=sae.whole(),
            gate=sae.gate,
            k=sae.k,
            file=sae.file,
            decoder=lambda ids: sae.rows(ids).dec,
            notes=sae.notes,
        )

    return cls(
        path,
        found.kind,
        _chosen(path, found.layers, wanted),
        open_layer,
        base_model=found.base_model,
        n_layer=found.n_layer,
    )


def _from_pack(
    cls: type[SaeLayers], path: str, pack: FeaturePack, wanted: tuple[int, ...] | None
) -> SaeLayers:
    whole = tuple(number for number, each in pack.layers.items() if each.full_enc is not None)
    partial = [each for each in wanted or pack.layers if each in pack.layers and each not in whole]
    if partial and (wanted or not whole):
        raise PackError(
            f"the pack has some features of layer {layer_name(partial[0])}, not its whole encoder",
            location=Location(path),
            hint="Give the published SAE, or convert with --exact-gate",
        )
    return cls(
        path,
        "feature pack",
        _chosen(path, whole, wanted),
        lambda number: _pack_layer(path, pack.layer(number)),
        base_model=pack.model.name,
        n_layer=pack.model.layers,
        architecture=pack.model.architecture,
    )


def _pack_layer(path: str, layer: PackLayer) -> FullLayer:
    def decoder(ids: I64Array) -> F32Array:
        try:
            return layer.dec[[layer.row(each) for each in ids.tolist()]]
        except PackError as error:
            error.location = error.location or Location(path)
            raise

    if layer.full_enc is None or layer.full_enc_bias is None:
        raise AssertionError("layers without their whole encoder are sorted out before")
    whole = len(layer.ids) == len(layer.full_enc)
    thresholds = None
    if whole and layer.thresholds is not None:
        thresholds = layer.thresholds[np.argsort(layer.ids)]
    return FullLayer(
        layer=layer.layer,
        encoder=WholeEncoder(layer.full_enc, "F32", layer.full_enc_bias, thresholds),
        gate=layer.gate,
        k=layer.k,
        file=Path(path),
        decoder=decoder,
        labels={
            id: label for id, label in zip(layer.ids.tolist(), layer.labels, strict=True) if label
        },
        notes=layer.notes,
    )
