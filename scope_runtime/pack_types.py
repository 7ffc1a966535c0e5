"""Feature packs in memory: frozen data, checked when made, from a file or from a converter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import PackError
from scope_runtime.policy.model import EMBEDDING, GateKind

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

ARCHITECTURE = "featurepack"
VERSION = 1
MAX_LAYERS = 1024
MAX_WIDTH = 65_536
MAX_LABEL_CHARACTERS = 200
_CHUNK_ELEMENTS = 4 << 20


def layer_name(layer: int) -> str:
    """A hook point as policies and messages write it: ``embedding`` or the block's number."""
    return "embedding" if layer == EMBEDDING else str(layer)


@dataclass(frozen=True, slots=True)
class PackModel:
    """The model that a pack's SAE was trained on; the architecture is llama.cpp's name of it."""

    architecture: str
    layers: int
    width: int
    name: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PackStats:
    """What the features of a layer do on a text sample; written by calibration.

    Attributes:
        max: largest activation, (n,).
        mean: mean activation over the tokens where it fired, (n,).
        firing_rate: share of tokens where it fired, 0 to 1, (n,).
        levels: probabilities of the quantiles, ascending.
        quantiles: of the activation over the tokens where it fired, (n, len(levels)).
    """

    max: F32Array
    mean: F32Array
    firing_rate: F32Array
    levels: tuple[float, ...]
    quantiles: F32Array


@dataclass(frozen=True, slots=True, eq=False)
class PackLayer:
    """Some features of one layer. Row i of every array belongs to the feature ``ids[i]``.

    Attributes:
        layer: 0-based block whose output is measured, or `EMBEDDING`.
        ids: numbers of the features in the SAE, each once, (n,).
        labels: one per feature, perhaps empty.
        enc: encoder rows with every convention of the SAE folded in: ``z = gate(enc @ h +
            enc_bias)``, (n, width).
        enc_bias: (n,).
        dec: decoder directions as stored in the SAE, not normalised, (n, width).
        gate: which gate turns the projection into an activation.
        k: of the SAE's own top-k, whether or not ``gate`` is topk; None where it has none.
        thresholds: per feature, for the gate ``threshold``, (n,).
        stats: None, if the pack was not calibrated.
        full_enc: the layer's whole encoder, for the gate ``topk``, (d_sae, width); memory-mapped
            when read from a file.
        full_enc_bias: (d_sae,).
        d_sae: number of features that the SAE has in this layer, if it is known.
        notes: sentences on what the pack does not do exactly; ``scope check`` prints them.
    """

    layer: int
    ids: I64Array
    labels: tuple[str, ...]
    enc: F32Array = field(repr=False)
    enc_bias: F32Array = field(repr=False)
    dec: F32Array = field(repr=False)
    gate: GateKind
    k: int | None = None
    thresholds: F32Array | None = field(default=None, repr=False)
    stats: PackStats | None = field(default=None, repr=False)
    full_enc: F32Array | None = field(default=None, repr=False)
    full_enc_bias: F32Array | None = field(default=None, repr=False)
    d_sae: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_layer(self)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.enc.shape[1])

    def row(self, id: int) -> int:
        """The row that holds feature ``id``.

        Raises:
            PackError: it is not in the pack; the message names the nearest ids that are.
        """
        rows = np.flatnonzero(self.ids == id)
        if rows.size:
            return int(rows[0])
        nearest = sorted(self.ids.tolist(), key=lambda other: (abs(other - id), other))[:8]
        more = len(self.ids) - len(nearest)
        raise PackError(
            f"feature {id} of layer {layer_name(self.layer)} is not in the pack",
            found=str(id),
            expected="one of "
            + ", ".join(map(str, sorted(nearest)))
            + (f" and {more} more" if more else ""),
        )


@dataclass(frozen=True, slots=True, eq=False)
class FeaturePack:
    """A feature pack.

    Attributes:
        path: the file it was read from, as it was given.
        digest: SHA-256 of the file, lower-case hex.
        provenance: pairs of key and text, sorted: source, file digests, SAE kind, licence.
        layers: in ascending order.
    """

    path: str
    digest: str
    version: int
    model: PackModel
    provenance: tuple[tuple[str, str], ...]
    layers: Mapping[int, PackLayer] = field(repr=False)

    def layer(self, layer: int) -> PackLayer:
        """The features of one layer. Raises PackError, naming the layers that are there."""
        found = self.layers.get(layer)
        if found is None:
            there = ", ".join(layer_name(each) for each in self.layers)
            raise PackError(
                f"layer {layer_name(layer)} is not in the pack", expected=f"one of {there}"
            )
        return found


def check_pack_model(model: PackModel) -> None:
    """Raise PackError if this can be no model."""
    if (
        not model.architecture
        or not model.architecture.isprintable()
        or len(model.architecture) > 64
    ):
        raise PackError("the model's architecture is no name", found=repr(model.architecture[:64]))
    if not 1 <= model.layers <= MAX_LAYERS:
        raise PackError(
            "the model's number of layers is absurd",
            found=str(model.layers),
            expected=f"1 to {MAX_LAYERS}",
        )
    if not 1 <= model.width <= MAX_WIDTH:
        raise PackError(
            "the model's width is absurd", found=str(model.width), expected=f"1 to {MAX_WIDTH}"
        )
    if model.name is not None and not model.name.isprintable():
        raise PackError("the model's name has control characters", found=repr(model.name[:80]))


def check_fits(layer: PackLayer, model: PackModel) -> None:
    """Raise PackError if the layer cannot be one of this model's."""
    if not EMBEDDING <= layer.layer < model.layers:
        raise PackError(
            f"layer {layer.layer} is not in the model",
            found=str(layer.layer),
            expected=f"embedding or 0 to {model.layers - 1}",
        )
    if layer.width != model.width:
        raise PackError(
            f"layer {layer_name(layer.layer)} does not fit the model",
            found=f"width {layer.width}",
            expected=f"width {model.width}",
        )


def check_finite(values: npt.NDArray[Any], what: str) -> None:
    """Raise PackError if there is a NaN or an infinity. Goes by pieces, for mapped files."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        fine = np.isfinite(flat[start : start + _CHUNK_ELEMENTS])
        if not fine.all():
            index = start + int(np.argmin(fine))
            place = [int(each) for each in np.unravel_index(index, values.shape)]
            raise PackError(f"{what} is not finite", found=f"{flat[index]} at {place}")


def check_text(text: str, what: str) -> None:
    """Raise PackError if a text would do more to a terminal or a log than be read there."""
    if any(not each.isprintable() and each not in "\n\t" for each in text):
        raise PackError(f"{what} has control characters", found=ascii(text[:80]))


def _check_layer(layer: PackLayer) -> None:
    name = f"layer {layer_name(layer.layer)}"
    if layer.ids.ndim != 1 or layer.enc.ndim != 2 or not layer.ids.size:
        raise PackError(f"{name} has no features")
    n, width = len(layer.ids), layer.width
    stats = layer.stats
    levels = len(stats.levels) if stats else 0
    arrays: list[tuple[str, npt.NDArray[Any] | None, tuple[int, ...]]] = [
        ("enc", layer.enc, (n, width)),
        ("enc_bias", layer.enc_bias, (n,)),
        ("dec", layer.dec, (n, width)),
        ("gate", layer.thresholds, (n,)),
        ("stats.max", stats.max if stats else None, (n,)),
        ("stats.mean", stats.mean if stats else None, (n,)),
        ("stats.firing_rate", stats.firing_rate if stats else None, (n,)),
        ("stats.quantiles", stats.quantiles if stats else None, (n, levels)),
    ]
    if layer.full_enc is not None:
        d_sae = layer.full_enc.shape[0]
        arrays += [
            ("full_enc", layer.full_enc, (d_sae, width)),
            ("full_enc_bias", layer.full_enc_bias, (d_sae,)),
        ]
    for key, array, shape in arrays:
        if array is None:
            continue
        if array.dtype != np.float32:
            raise PackError(f"{name}: {key} is not F32", found=str(array.dtype))
        if array.shape != shape:
            raise PackError(
                f"{name}: {key} has the wrong shape", found=str(array.shape), expected=str(shape)
            )
        check_finite(array, f"{name}: {key}")
    _check_features(layer, name)
    _check_gate(layer, name)


def _check_features(layer: PackLayer, name: str) -> None:
    ids, counts = np.unique(layer.ids, return_counts=True)
    if counts.max() > 1:
        raise PackError(f"{name}: a feature is there twice", found=str(ids[counts.argmax()]))
    d_sae = len(layer.full_enc) if layer.full_enc is not None else layer.d_sae
    if d_sae is not None and layer.d_sae not in (None, d_sae):
        raise PackError(
            f"{name}: d_sae differs from full_enc", found=str(layer.d_sae), expected=str(d_sae)
        )
    if ids[0] < 0 or (d_sae is not None and ids[-1] >= d_sae):
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise PackError(
            f"{name}: the SAE has no such feature",
            found=str(wrong),
            expected="0 or more" if d_sae is None else f"0 to {d_sae - 1}",
        )
    if len(layer.labels) != len(layer.ids):
        raise PackError(
            f"{name}: labels do not match the features",
            found=str(len(layer.labels)),
            expected=str(len(layer.ids)),
        )
    for label in layer.labels:
        # Labels reach terminals and logs: a control character there is an attack or an accident,
        # never a name.
        if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
            raise PackError(
                f"{name}: a label is too long or has control characters", found=repr(label[:80])
            )

    for note in layer.notes:
        check_text(note, f"{name}: a note")


def _check_gate(layer: PackLayer, name: str) -> None:
    if layer.gate is GateKind.THRESHOLD and layer.thresholds is None:
        raise PackError(f"{name}: the gate threshold needs thresholds")
    if layer.k is not None and layer.k < 1:
        raise PackError(f"{name}: k is no count", found=str(layer.k), expected="1 or more")
    if (layer.full_enc is None) != (layer.full_enc_bias is None):
        raise PackError(f"{name}: full_enc and full_enc_bias go together")
    full_enc, bias = layer.full_enc, layer.full_enc_bias
    if layer.gate is GateKind.TOPK and (full_enc is None or layer.k is None):
        raise PackError(
            f"{name}: the gate topk needs k and the layer's whole encoder",
            found=f"k {layer.k}, "
            + ("the whole encoder" if full_enc is not None else "some rows only"),
        )
    if full_enc is None or bias is None:
        return
    if layer.k is not None and layer.k > len(full_enc):
        raise PackError(
            f"{name}: k is larger than the SAE",
            found=str(layer.k),
            expected=f"at most {len(full_enc)}",
        )
    # A row that stood at another place of the whole encoder would be measured as one feature and
    # gated as another.
    same = (full_enc[layer.ids] == layer.enc).all(axis=1) & (bias[layer.ids] == layer.enc_bias)
    if not same.all():
        raise PackError(
            f"{name}: the whole encoder and the feature's own row differ",
            found=f"feature {layer.ids[same.argmin()]}",
        )
