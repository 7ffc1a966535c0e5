"""The compiled program: immutable, digest-addressed, everything the hook needs and nothing it does not.

``Layout`` holds the tables that ``scope_runtime/native/include/scope_program.h`` defines, as numpy dtypes;
``serialise`` lays them out as the one flat blob that the hook reads. ``Program`` is what the rest of the package
passes around.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from scope_runtime.policy.model import AlertSpec, Mode, Op

PROGRAM_VERSION = 1
NONE = 0xFFFFFFFF
FloatArray = npt.NDArray[np.float32]

OPS = {Op.AMPLIFY: 0, Op.MUTE: 1, Op.SCALE: 2, Op.CLAMP: 3, Op.ABLATE: 4, Op.ALERT: 5}
DELTA_SCALE, DELTA_CLAMP, DELTA_ADD, DELTA_ADD_RESIDUAL, DELTA_ABLATE = range(5)
ACTION_ABORT = 1

RULE = np.dtype(
    [
        ("op", "<u4"),
        ("mode", "<u4"),
        ("phase", "<u4"),
        ("positions_of", "<u4"),
        ("pos_from", "<i4"),
        ("pos_to", "<i4"),
        ("condition", "<u4"),
        ("switch_on", "<u4"),
        ("alert", "<u4"),
        ("actions", "<u4"),
    ]
)
POINT = np.dtype(
    [
        ("layer", "<i4"),
        ("first_feature", "<u4"),
        ("n_features", "<u4"),
        ("first_delta", "<u4"),
        ("n_deltas", "<u4"),
        ("reserved", "<u4"),
    ]
)
FEATURE = np.dtype(
    [
        ("gate", "<u4"),
        ("encoder", "<u4"),
        ("latent", "<u4"),
        ("threshold", "<f4"),
        ("bias", "<f4"),
        ("reserved", "<u4"),
        ("off_row", "<u8"),
    ]
)
ENCODER = np.dtype([("d_sae", "<u4"), ("k", "<u4"), ("off_rows", "<u8"), ("off_bias", "<u8")])
TRIGGER = np.dtype(
    [
        ("first_feature", "<u4"),
        ("n_features", "<u4"),
        ("watch", "<u4"),
        ("point", "<u4"),
        ("above", "<f4"),
        ("below", "<f4"),
        ("hysteresis", "<f4"),
        ("for_tokens", "<u4"),
        ("keep_tokens", "<u4"),
        ("reserved", "<u4"),
    ]
)
DELTA = np.dtype(
    [
        ("rule", "<u4"),
        ("kind", "<u4"),
        ("feature", "<u4"),
        ("rank", "<u4"),
        ("a", "<f4"),
        ("b", "<f4"),
        ("off_row", "<u8"),
    ]
)
HEADER = struct.Struct("<8sIIQQ32s10IfI7Q")
_HASHED_BYTES = 1 << 16


@dataclass(slots=True)
class Layout:
    """The program's tables under construction, rows in the order in which they will be written.

    Float rows (encoder rows, directions, bases) are arrays; ``row`` returns a handle that ``serialise`` turns into an
    offset, so that equal arrays are stored once.
    """

    n_embd: int
    n_layer: int
    on_excess: int = 0
    dose_max: float = float("inf")
    rules: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    features: list[dict[str, Any]] = field(default_factory=list)
    triggers: list[dict[str, Any]] = field(default_factory=list)
    trigger_features: list[int] = field(default_factory=list)
    deltas: list[dict[str, Any]] = field(default_factory=list)
    encoders: list[dict[str, Any]] = field(default_factory=list)
    rows: list[FloatArray] = field(default_factory=list)
    _seen: dict[object, int] = field(default_factory=dict)

    def row(self, values: FloatArray) -> int:
        """Handle of a float array of any shape, to be stored C-contiguous in F32."""
        array = np.ascontiguousarray(values, dtype=np.float32)
        # A whole encoder is told by where it lies: hashing it would take longer than all the rest.
        key: bytes | tuple[int, tuple[int, ...]] = (
            hashlib.sha256(array.data).digest()
            if array.nbytes <= _HASHED_BYTES
            else (array.ctypes.data, array.shape)
        )
        if key not in self._seen:
            self._seen[key] = len(self.rows)
            self.rows.append(array)
        return self._seen[key]


def _align(offset: int, to: int) -> int:
    return -(-offset // to) * to


def _table(
    dtype: np.dtype[Any], rows: Sequence[Mapping[str, Any]], offsets: Sequence[int]
) -> bytes:
    out = np.zeros(len(rows), dtype)
    for i, row in enumerate(rows):
        for name, value in row.items():
            out[i][name] = offsets[value] if name.startswith("off_") else value
    return out.tobytes()


def serialise(layout: Layout) -> bytes:
    """The blob of scope_program.h. The same layout gives the same bytes."""
    tables: list[tuple[np.dtype[Any], Sequence[Any]]] = [
        (RULE, layout.rules),
        (POINT, layout.points),
        (FEATURE, layout.features),
        (TRIGGER, layout.triggers),
        (np.dtype("<u4"), layout.trigger_features),
        (DELTA, layout.deltas),
        (ENCODER, layout.encoders),
    ]
    at = HEADER.size
    starts = []
    for dtype, rows in tables:
        at = _align(at, 8)
        starts.append(at)
        at += dtype.itemsize * len(rows)
    offsets = []
    for array in layout.rows:
        at = _align(at, 64)
        offsets.append(at)
        at += array.nbytes
    total = _align(at, 8)

    blob = bytearray(total)
    for (dtype, rows), start in zip(tables, starts, strict=True):
        data = (
            np.array(rows, dtype).tobytes() if dtype.names is None else _table(dtype, rows, offsets)
        )
        blob[start : start + len(data)] = data
    for array, offset in zip(layout.rows, offsets, strict=True):
        blob[offset : offset + array.nbytes] = array.tobytes()

    counts = [len(rows) for _, rows in tables]

    def header(checksum: int, digest: bytes) -> bytes:
        return HEADER.pack(
            b"SCOPEPRG",
            PROGRAM_VERSION,
            HEADER.size,
            total,
            checksum,
            digest,
            layout.n_embd,
            layout.n_layer,
            *counts,
            layout.on_excess,
            layout.dose_max,
            0,
            *starts,
        )

    body = memoryview(blob)[HEADER.size :]
    digest = hashlib.sha256(header(0, bytes(32)))
    digest.update(body)
    blob[: HEADER.size] = header(zlib.crc32(body), digest.digest())
    return bytes(blob)


@dataclass(frozen=True, slots=True)
class Target:
    """A feature or direction of a rule: where it lies, and ``name (layer 20, id 6159)`` in words."""

    layer: int
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """What events, reports and ``scope explain`` say about one compiled rule; its index is its place in the program.

    Attributes:
        targets: what it acts on or watches.
        layers: hook points it acts or measures at, ascending; -1 is the embedding.
        plane: ``callback`` or ``control-vector``; the latter acts but is not measured.
        why: one sentence: what it does in numbers, and why on that plane.
        policy: which policy of a merged set it comes from; empty where there is only one.
    """

    name: str
    op: Op
    mode: Mode
    targets: tuple[Target, ...]
    layers: tuple[int, ...]
    plane: str
    why: str
    alert: AlertSpec | None = None
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A policy compiled for one model.

    Attributes:
        blob: what the hook reads (scope_program.h); holds only the rules on the callback plane that are not off.
        rules: one per rule in the blob, same order, then those on the control-vector plane.
        control_vectors: layer (>= 1) to the summed direction (n_embd,), for llama_set_adapter_cvec.
        revision: the policy's revision, ``sha256:…``.
        digest: names the program's effect: equal digests compute equal KV.
        notes: sentences that a person should read before relying on the program.
        phase_dependent: the effect at a position depends on where the prompt ended, so that KV computed as one
            request's answer is no good as another's prompt.
    """

    blob: bytes
    rules: tuple[ProgramRule, ...]
    n_hooked: int
    control_vectors: Mapping[int, FloatArray]
    policy: str
    revision: str
    digest: str
    n_embd: int
    n_layer: int
    architecture: str
    packs: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    phase_dependent: bool

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """With the blob as it lies in memory, where the pickle's protocol can hand that over."""
        of = {each.name: getattr(self, each.name) for each in fields(self)}
        if int(protocol) >= 5:
            of["blob"] = pickle.PickleBuffer(self.blob)
        return Program, tuple(of.values())

    @property
    def hooks(self) -> bool:
        """Whether the callback plane has anything to do."""
        return self.n_hooked > 0


def program_digest(blob: bytes, control_vectors: Mapping[int, FloatArray]) -> str:
    """SHA-256 over the blob's header, which bears the digest of all of it, and the control vectors: ``sha256:…``."""
    digest = hashlib.sha256(blob[: HEADER.size])
    for layer in sorted(control_vectors):
        digest.update(struct.pack("<i", layer))
        digest.update(np.ascontiguousarray(control_vectors[layer]).data)
    return f"sha256:{digest.hexdigest()}"


def empty_program(n_embd: int, n_layer: int, architecture: str) -> Program:
    """The program that does nothing: no policy, ``mode: off``, or the off switch."""
    blob = serialise(Layout(n_embd, n_layer))
    digest = program_digest(blob, {})
    return Program(
        blob,
        (),
        0,
        MappingProxyType({}),
        "",
        "none",
        digest,
        n_embd,
        n_layer,
        architecture,
        (),
        (),
        False,
    )
