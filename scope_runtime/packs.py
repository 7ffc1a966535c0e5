"""Feature packs: just the rows of an SAE that policies use, in one GGUF file (version 1).

``general.architecture`` is ``featurepack``. L below is a layer as `layer_name` writes it:
``embedding``, ``0``, ``17``. Keys, all under ``featurepack.``:

=================== ======== ======================================================================
version             u32      1; readers refuse any other
model.architecture  string   llama.cpp's name of the model's architecture
model.layers        u32      number of blocks
model.width         u32      width of the residual stream
model.name          string   optional
provenance.<key>    string   source, file digests, SAE kind, licence …; sorted
feature.layer       i32[]    one element per feature, ascending; -1 is the embedding
feature.id          i64[]    its number in the SAE
feature.label       string[] perhaps empty strings
layer.L.gate        string   none, relu, threshold, topk
layer.L.k           u32      k of the SAE's own top-k; optional unless the gate is topk
layer.L.d_sae       u32      number of features in the SAE; optional
layer.L.stats.levels f32[]   probabilities of the quantiles; with stats only
layer.L.notes       string[] what is not exact here, in words ("… relu stands in …"); optional
=================== ======== ======================================================================

Tensors, all F32, n the number of features of that layer, in the order of ``feature.id``:

===================== =============== =============================================================
layer.L.enc           (n, width)      encoder rows, every convention folded in
layer.L.enc_bias      (n,)
layer.L.dec           (n, width)      decoder directions, as stored
layer.L.gate          (n,)            threshold per feature; needed by the gate threshold
layer.L.stats         (n, 3 + levels) max, mean, firing rate, quantiles; optional
layer.L.full_enc      (d_sae, width)  the whole encoder; needed by the gate topk
layer.L.full_enc_bias (d_sae,)
===================== =============== =============================================================

Keys that are not listed are left alone; a tensor that is not listed is refused, because it would be
a gate or a direction that somebody relies on and nobody carries out.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly, sha256_of
from scope_runtime.gguf_check import Header, TensorInfo, read_header
from scope_runtime.gguf_types import F32
from scope_runtime.gguf_values import Keys
from scope_runtime.pack_types import (
    ARCHITECTURE,
    VERSION,
    F32Array,
    FeaturePack,
    I64Array,
    PackLayer,
    PackModel,
    PackStats,
    check_fits,
    check_pack_model,
    check_text,
    layer_name,
)
from scope_runtime.packs_write import write_pack
from scope_runtime.policy.model import GateKind

__all__ = [
    "ARCHITECTURE",
    "VERSION",
    "FeaturePack",
    "PackLayer",
    "PackModel",
    "PackStats",
    "layer_name",
    "read_pack",
    "write_pack",
]

MAX_ROW_BYTES = 1 << 30  # of what is read into memory; whole encoders are mapped, and do not count


def read_pack(path: str | Path) -> FeaturePack:
    """Read a feature pack and check all of it.

    Whole encoders stay in the file and are mapped: replace a pack by renaming a new file over it
    (as every tool here does), never by writing into it.

    Raises:
        PackError: with the path, and what does not hold.
    """
    with open_regular(path, PackError) as file:
        try:
            header = read_header(file, str(path), PackError, keep_array=_is_ours)
            return _Reader(file, header).pack()
        except PackError as error:
            error.location = error.location or Location(str(path))
            raise


def _is_ours(key: str) -> bool:
    return key.startswith(f"{ARCHITECTURE}.")


class _Reader:
    """One pack file that is being read: its header, and which of its tensors were asked for."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.file, self.header = file, header
        self.keys = Keys(header, PackError)
        self.fail = self.keys.fail
        self.used: set[str] = set()
        self.row_bytes = 0

    def pack(self) -> FeaturePack:
        architecture = self.header.values.get("general.architecture")
        if architecture != ARCHITECTURE:
            self.fail(
                "not a feature pack",
                found=f"architecture {architecture!r}",
                expected=repr(ARCHITECTURE),
            )
        version = self.keys.integer(f"{ARCHITECTURE}.version")
        if version != VERSION:
            self.fail(
                "feature pack of an unknown version", found=str(version), expected=str(VERSION)
            )
        if self.header.alignment % 4:
            self.fail("general.alignment does not suit F32", found=str(self.header.alignment))
        model = PackModel(
            self.keys.text(f"{ARCHITECTURE}.model.architecture"),
            self.keys.integer(f"{ARCHITECTURE}.model.layers"),
            self.keys.integer(f"{ARCHITECTURE}.model.width"),
            self.keys.optional_text(f"{ARCHITECTURE}.model.name"),
        )
        check_pack_model(model)
        layers = self.layers(model)
        unknown = sorted(self.header.tensors.keys() - self.used)
        if unknown:
            self.fail("a tensor has no place in a feature pack", found=repr(unknown[0]))
        provenance = self.provenance()
        # Last, because it reads the whole file, however large one that is no pack may be.
        digest = sha256_of(self.file)
        return FeaturePack(
            self.header.path, digest, version, model, provenance, MappingProxyType(layers)
        )

    def layers(self, model: PackModel) -> dict[int, PackLayer]:
        prefix = f"{ARCHITECTURE}.feature"
        of_layer = np.array(self.keys.integers(f"{prefix}.layer"), dtype=np.int64)
        ids = np.array(self.keys.integers(f"{prefix}.id"), dtype=np.int64)
        labels = self.keys.texts(f"{prefix}.label") or ()
        if not len(of_layer) == len(ids) == len(labels):
            self.fail(
                "the arrays layer, id and label differ in length",
                found=f"{len(of_layer)}, {len(ids)}, {len(labels)}",
            )
        if not len(of_layer):
            self.fail("a feature pack without features")
        if (np.diff(of_layer) < 0).any():
            self.fail(f"{ARCHITECTURE}.feature.layer is not ascending")
        layers: dict[int, PackLayer] = {}
        for number in np.unique(of_layer).tolist():
            rows = np.flatnonzero(of_layer == number)
            names = tuple(labels[row] for row in rows.tolist())
            layers[number] = self.layer(number, ids[rows], names, model)
            check_fits(layers[number], model)
        return layers

    def layer(
        self, number: int, ids: I64Array, labels: tuple[str, ...], model: PackModel
    ) -> PackLayer:
        name = layer_name(number)
        n, width = len(ids), model.width
        gate = self.keys.text(f"{ARCHITECTURE}.layer.{name}.gate")
        if gate not in set(GateKind):
            self.fail(
                f"layer {name} has an unknown gate",
                found=repr(gate),
                expected="none, relu, threshold or topk",
            )
        full_enc = full_enc_bias = None
        if f"layer.{name}.full_enc" in self.header.tensors or gate == GateKind.TOPK:
            full_enc = self.mapped(f"layer.{name}.full_enc", width)
            full_enc_bias = self.rows(f"layer.{name}.full_enc_bias", (len(full_enc),))
        thresholds = None
        if f"layer.{name}.gate" in self.header.tensors or gate == GateKind.THRESHOLD:
            thresholds = self.rows(f"layer.{name}.gate", (n,))
        ids.flags.writeable = False
        return PackLayer(
            layer=number,
            ids=ids,
            labels=labels,
            enc=self.rows(f"layer.{name}.enc", (n, width)),
            enc_bias=self.rows(f"layer.{name}.enc_bias", (n,)),
            dec=self.rows(f"layer.{name}.dec", (n, width)),
            gate=GateKind(gate),
            k=self.keys.optional_integer(f"{ARCHITECTURE}.layer.{name}.k"),
            thresholds=thresholds,
            stats=self.stats(name, n),
            full_enc=full_enc,
            full_enc_bias=full_enc_bias,
            d_sae=self.keys.optional_integer(f"{ARCHITECTURE}.layer.{name}.d_sae"),
            notes=self.keys.texts(f"{ARCHITECTURE}.layer.{name}.notes") or (),
        )

    def stats(self, name: str, n: int) -> PackStats | None:
        if f"layer.{name}.stats" not in self.header.tensors:
            return None
        key = f"{ARCHITECTURE}.layer.{name}.stats.levels"
        levels = self.keys.floats(key)
        if not all(0 <= each <= 1 for each in levels) or list(levels) != sorted(set(levels)):
            self.fail(f"{key} is no ascending row of probabilities", found=str(list(levels)[:8]))
        table = self.rows(f"layer.{name}.stats", (n, 3 + len(levels)))
        return PackStats(table[:, 0], table[:, 1], table[:, 2], levels, table[:, 3:])

    def provenance(self) -> tuple[tuple[str, str], ...]:
        prefix = f"{ARCHITECTURE}.provenance."
        pairs = [
            (key[len(prefix) :], value)
            for key, value in self.header.values.items()
            if key.startswith(prefix) and isinstance(value, str)
        ]
        for key, value in pairs:
            check_text(key + value, f"the provenance {key!r}")
        return tuple(sorted(pairs))

    def info(self, name: str) -> TensorInfo:
        info = self.header.tensors.get(name)
        if info is None:
            self.fail(f"the tensor {name!r} is missing")
        if info.type is not F32:
            self.fail(f"the tensor {name!r} is not F32", found=info.type.name)
        self.used.add(name)
        return info

    def rows(self, name: str, shape: tuple[int, ...]) -> F32Array:
        info = self.info(name)
        if info.shape != shape:
            self.fail(
                f"the tensor {name!r} has the wrong shape",
                found=str(info.shape),
                expected=str(shape),
            )
        self.row_bytes += info.n_bytes
        if self.row_bytes > MAX_ROW_BYTES:
            self.fail(
                "the features take too much memory", expected=f"at most {MAX_ROW_BYTES} bytes"
            )
        data = read_exactly(self.file, info.offset, info.n_bytes)
        if len(data) != info.n_bytes:
            self.fail("changed while it was read")
        values = np.frombuffer(data, dtype="<f4").reshape(shape)
        values.flags.writeable = False
        return values

    def mapped(self, name: str, width: int) -> F32Array:
        info = self.info(name)
        if len(info.shape) != 2 or info.shape[1] != width:
            self.fail(
                f"the tensor {name!r} has the wrong shape",
                found=str(info.shape),
                expected=f"(d_sae, {width})",
            )
        return np.memmap(self.file, dtype="<f4", mode="r", offset=info.offset, shape=info.shape)
