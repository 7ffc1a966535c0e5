"""First half of compilation: the names of a policy become rows of its packs and vectors, checked against the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from scope_runtime.errors import CompileError, Location, ModelError, ScopeError
from scope_runtime.packs import FeaturePack, PackLayer, read_pack
from scope_runtime.policy.files import file_path
from scope_runtime.policy.model import (
    EMBEDDING,
    Feature,
    Gate,
    GateKind,
    GroupFeature,
    PackFeature,
    Policy,
    VectorFeature,
)
from scope_runtime.policy.revision import FileDigests
from scope_runtime.program import FloatArray
from scope_runtime.types import ModelShape
from scope_runtime.vectors import ControlVector, read_control_vector

Artefact = TypeVar("Artefact", FeaturePack, ControlVector)


@dataclass(frozen=True, slots=True)
class Latent:
    """One pack feature, ready to be measured: ``z = gate(w.h + b)``, direction ``d``."""

    name: str
    layer: int
    id: int
    label: str
    w: FloatArray
    b: float
    d: FloatArray
    gate: GateKind
    threshold: float
    k: int
    recorded_max: float | None
    pack: FeaturePack
    location: Location

    @property
    def key(self) -> tuple[object, ...]:
        """Equal keys measure the same number: such features are measured once."""
        return (self.pack.digest, self.layer, self.id, self.gate, self.threshold, self.k)

    def __str__(self) -> str:
        where = "embedding" if self.layer == EMBEDDING else f"layer {self.layer}"
        return f"{self.name} ({where}, id {self.id})"


@dataclass(frozen=True, slots=True)
class Direction:
    """One layer of a control vector."""

    name: str
    layer: int
    d: FloatArray
    location: Location

    def __str__(self) -> str:
        return f"{self.name} (layer {self.layer})"


@dataclass(frozen=True, slots=True)
class Artefacts:
    """The files that a policy names, opened once each, by the path written in the policy."""

    packs: Mapping[str, FeaturePack] = field(default_factory=dict)
    vectors: Mapping[str, ControlVector] = field(default_factory=dict)

    def digests(self) -> list[tuple[str, str]]:
        """Name and SHA-256 of every file."""
        packs = [(name, pack.digest) for name, pack in self.packs.items()]
        return packs + [(name, vector.digest) for name, vector in self.vectors.items()]


class OpenFiles:
    """Packs and vectors that stay open from one build to the next: a file with the same bytes is read once.

    What the latest build did not ask for is let go of when the next one begins.
    """

    def __init__(self, digests: FileDigests) -> None:
        self._digests = digests
        self._before: dict[tuple[Path, str], FeaturePack | ControlVector] = {}
        self._now: dict[tuple[Path, str], FeaturePack | ControlVector] = {}

    def begin(self) -> None:
        """A new build begins."""
        self._before, self._now = self._now, {}

    def opened(self, read: Callable[[Path], Artefact], path: Path) -> Artefact:
        """What ``read`` makes of the file; raises what it raises."""
        kept = None
        with contextlib.suppress(OSError):  # whoever reads it says why it cannot be read
            key = (path, self._digests.digest(path).removeprefix("sha256:"))
            kept = self._now.get(key) or self._before.get(key)
        artefact = cast("Artefact", kept) if kept is not None else read(path)
        # Under what was read, which may be newer than what was digested.
        self._now[path, artefact.digest] = artefact
        return artefact


def load_artefacts(policy: Policy, files: OpenFiles | None = None) -> Artefacts:
    """Opens every pack and vector that the policy names, or takes them from ``files``.

    Raises:
        PackError: one cannot be read; with the place in the policy.
    """
    packs: dict[str, FeaturePack] = {}
    vectors: dict[str, ControlVector] = {}
    for feature in policy.features:
        if isinstance(feature, PackFeature) and feature.pack not in packs:
            packs[feature.pack] = _opened(read_pack, policy, feature.pack, feature.location, files)
        elif isinstance(feature, VectorFeature) and feature.vector not in vectors:
            vectors[feature.vector] = _opened(
                read_control_vector, policy, feature.vector, feature.location, files
            )
    return Artefacts(packs, vectors)


def _opened(
    read: Callable[[Path], Artefact],
    policy: Policy,
    name: str,
    location: Location,
    files: OpenFiles | None,
) -> Artefact:
    try:
        path = file_path(policy, name)
        return files.opened(read, path) if files is not None else read(path)
    except ScopeError as error:
        error.hint = f"Named at {location}" + (f". {error.hint}" if error.hint else "")
        raise


def shape_of_packs(artefacts: Artefacts) -> ModelShape | None:
    """The model that the packs were made for; None when there is no pack."""
    for pack in artefacts.packs.values():
        return ModelShape(pack.model.architecture, pack.model.layers, pack.model.width)
    return None


def check_fit(policy: Policy, artefacts: Artefacts, shape: ModelShape) -> None:
    """Refuses a policy, pack or vector that was made for another model."""
    wanted = policy.model
    if wanted is not None:
        for key, want, have in (
            ("architecture", wanted.architecture, shape.architecture),
            ("layers", wanted.layers, shape.n_layer),
            ("width", wanted.width, shape.n_embd),
        ):
            if want is not None and want != have:
                raise ModelError(
                    "the policy is for another model",
                    location=wanted.location,
                    key=f"spec.model.{key}",
                    found=f"a model with {key} {have}",
                    expected=str(want),
                )
    for name, pack in artefacts.packs.items():
        for key, want, have in (
            ("architecture", pack.model.architecture, shape.architecture),
            ("layers", pack.model.layers, shape.n_layer),
            ("width", pack.model.width, shape.n_embd),
        ):
            if want is not None and want != have:
                raise ModelError(
                    f"pack {name} was made for another model",
                    location=_first_use(policy, name),
                    found=f"a model with {key} {have}",
                    expected=f"{key} {want}",
                )
    for name, vector in artefacts.vectors.items():
        for layer, values in vector.layers.items():
            if layer >= shape.n_layer or values.size != shape.n_embd:
                raise ModelError(
                    f"vector {name} does not fit the model",
                    location=_first_use(policy, name),
                    found=f"direction.{layer} of width {values.size}",
                    expected=f"layers 1 to {shape.n_layer - 1} of width {shape.n_embd}",
                )


def _first_use(policy: Policy, path: str) -> Location | None:
    for feature in policy.features:
        if path in (getattr(feature, "pack", None), getattr(feature, "vector", None)):
            return feature.location
    return None


def resolve(
    policy: Policy, artefacts: Artefacts, names: tuple[str, ...]
) -> tuple[Latent | Direction, ...]:
    """What the given feature names stand for, groups expanded, each once, in the order written."""
    found: dict[object, Latent | Direction] = {}
    for name in names:
        for item in _resolve_one(policy, artefacts, policy.feature(name)):
            found.setdefault(
                item.key if isinstance(item, Latent) else (item.name, item.layer), item
            )
    return tuple(found.values())


def resolve_latents(
    policy: Policy, artefacts: Artefacts, names: tuple[str, ...]
) -> tuple[Latent, ...]:
    """Like ``resolve``, for rules that measure; a control vector among the names is a CompileError."""
    out = []
    for item in resolve(policy, artefacts, names):
        if isinstance(item, Direction):
            raise CompileError(
                f"feature {item.name} is a control vector, which has no activation to measure",
                location=item.location,
            )
        out.append(item)
    return tuple(out)


def _resolve_one(
    policy: Policy, artefacts: Artefacts, feature: Feature
) -> tuple[Latent | Direction, ...]:
    if isinstance(feature, GroupFeature):
        return tuple(
            item
            for member in feature.members
            for item in _resolve_one(policy, artefacts, policy.feature(member))
        )
    if isinstance(feature, VectorFeature):
        return _directions(artefacts.vectors[feature.vector], feature)
    return (_latent(artefacts.packs[feature.pack], feature),)


def _directions(vector: ControlVector, feature: VectorFeature) -> tuple[Direction, ...]:
    layers = feature.layers if feature.layers is not None else tuple(sorted(vector.layers))
    for layer in layers:
        if layer not in vector.layers:
            raise CompileError(
                f"{feature.vector} has no direction for layer {layer}",
                location=feature.location,
                found=f"layer {layer}",
                expected=f"one of {', '.join(str(n) for n in sorted(vector.layers))}",
            )
    return tuple(
        Direction(
            feature.name, layer, np.asarray(vector.layers[layer], np.float32), feature.location
        )
        for layer in layers
    )


def _latent(pack: FeaturePack, feature: PackFeature) -> Latent:
    if feature.layer not in pack.layers:
        have = ", ".join("embedding" if n == EMBEDDING else str(n) for n in sorted(pack.layers))
        raise CompileError(
            f"{feature.pack} has no features at this layer",
            location=feature.location,
            key=f"spec.features.{feature.name}.layer",
            found="embedding" if feature.layer == EMBEDDING else f"layer {feature.layer}",
            expected=f"one of {have}",
        )
    layer = pack.layers[feature.layer]
    try:
        row = layer.row(feature.id)
    except ScopeError as error:
        raise CompileError(
            error.message,
            location=feature.location,
            key=f"spec.features.{feature.name}.id",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from None
    gate, threshold, k = _gate(layer, row, feature)
    return Latent(
        name=feature.name,
        layer=feature.layer,
        id=feature.id,
        label=layer.labels[row],
        w=layer.enc[row],
        b=float(layer.enc_bias[row]),
        d=layer.dec[row],
        gate=gate,
        threshold=threshold,
        k=k,
        recorded_max=float(layer.stats.max[row]) if layer.stats is not None else None,
        pack=pack,
        location=feature.location,
    )


def _gate(layer: PackLayer, row: int, feature: PackFeature) -> tuple[GateKind, float, int]:
    """The gate to use: the policy's override, else what the pack recorded."""
    gate = feature.gate or Gate(layer.gate)
    threshold, k = 0.0, 0
    key = f"spec.features.{feature.name}.gate"
    if gate.kind is GateKind.THRESHOLD:
        if gate.threshold is not None:
            threshold = gate.threshold
        elif layer.thresholds is not None:
            threshold = float(layer.thresholds[row])
        else:
            raise CompileError(
                f"{feature.pack} records no threshold for layer {feature.layer}",
                location=feature.location,
                key=key,
                expected="gate: {kind: threshold, threshold: …}",
            )
    elif gate.kind is GateKind.TOPK:
        if layer.full_enc is None:
            raise CompileError(
                f"an exact top-k gate needs the layer's whole encoder, which {feature.pack} does not hold",
                location=feature.location,
                key=key,
                hint=f"Make the pack again with --exact-gate {feature.layer}, or use gate: relu",
            )
        k = gate.k or layer.k or 0
        if not 1 <= k <= len(layer.full_enc):
            raise CompileError(
                "a top-k gate needs k",
                location=feature.location,
                key=key,
                found=f"k = {k}",
                expected=f"1 to {len(layer.full_enc)}",
            )
    return gate.kind, threshold, k
