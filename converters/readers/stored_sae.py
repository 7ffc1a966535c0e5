"""An SAE layer whose arrays stay in their file, with its conventions as data, folded when read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converters.features import SaeRows
from converters.fold import fold_encoder, gate_as_threshold
from converters.readers.stored import BLOCK_BYTES, File, FileArray, StoredArray, block_rows
from scope_runtime.errors import PackError
from scope_runtime.pack_types import MAX_WIDTH, F32Array, I64Array, check_finite
from scope_runtime.policy.model import GateKind
from scope_runtime.sae.encoder import WholeEncoder

MAX_D_SAE = 1 << 24
SCRATCH_BYTES = 64 << 20
"""A whole encoder larger than this is put together in a file without a name, not in memory."""

RELU_AFTER_TOPK = (
    "the SAE's ReLU behind its top-k is not part of the gate topk: where fewer than k features are "
    "above 0, one of the k can be negative here and is 0 in the SAE"
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of features: a row each, or a column each if ``transposed``."""

    array: StoredArray
    transposed: bool

    def take(self, ids: I64Array) -> F32Array:
        """Some features, (n, width)."""
        part = self.array.take(ids, 1 if self.transposed else 0)
        return np.ascontiguousarray(part.T) if self.transposed else part


@dataclass(frozen=True, slots=True, eq=False)
class StoredSae:
    """One layer of an SAE in a file; see `converters.features.SaeLayer`.

    Attributes:
        data: the file with its arrays.
        enc, dec: encoder and decoder.
        bias: of the encoder, (d_sae,); None if it has none.
        input_offset, input_scale, centred: as `converters.fold.fold_encoder` has them.
        r_mag, b_gate: of a gated SAE, (d_sae,).
        thresholds: of a JumpReLU SAE, (d_sae,), or one for all.
        dec_scale: what directions are multiplied with, (d_sae,), or one for all.
        decoder_norms: whether the SAE multiplies activations by the norms of the directions before
            its gate and uses directions of length 1.
    """

    layer: int
    gate: GateKind
    k: int | None
    data: File
    enc: Matrix
    dec: Matrix
    bias: F32Array | None
    kind: str
    input_offset: F32Array | None = None
    input_scale: float = 1.0
    centred: bool = False
    r_mag: F32Array | None = None
    b_gate: F32Array | None = None
    thresholds: F32Array | float | None = None
    dec_scale: F32Array | float = 1.0
    decoder_norms: bool = False
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    hook_point: str = "output of the block"
    base_model: str | None = None
    width: int = field(init=False)
    d_sae: int = field(init=False)

    def __post_init__(self) -> None:
        shape = self.enc.array.shape
        d_sae, width = reversed(shape) if self.enc.transposed else shape
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "d_sae", d_sae)
        if not 1 <= d_sae <= MAX_D_SAE or not 1 <= width <= MAX_WIDTH:
            self.data.fail("the encoder has an impossible shape", found=str(shape))
        expected = (width, d_sae) if self.dec.transposed else (d_sae, width)
        if self.dec.array.shape != expected:
            self.data.fail(
                "encoder and decoder do not fit each other",
                found=f"{shape} and {self.dec.array.shape}",
                expected=f"{shape} and {expected}",
            )
        if self.gate is GateKind.TOPK and self.k is not None and not 1 <= self.k <= d_sae:
            self.data.fail("k is no count of features", found=str(self.k), expected=f"1 to {d_sae}")

    @property
    def file(self) -> Path:
        return self.data.path

    def rows(self, ids: I64Array) -> SaeRows:
        """Some features."""
        wrong = [each for each in ids.tolist() if not 0 <= each < self.d_sae]
        if wrong:
            self.data.fail(
                "the SAE has no such feature",
                found=str(wrong[0]),
                expected=f"0 to {self.d_sae - 1}",
            )
        dec = self.dec.take(ids)
        norms = self._norms(dec)
        enc, bias = self._folded(self.enc.take(ids), ids, norms)
        if norms is not None:
            dec = (dec / norms[:, None].astype(np.float64)).astype(np.float32)
        scale = self.dec_scale if isinstance(self.dec_scale, float) else self.dec_scale[ids, None]
        if not np.all(scale == 1.0):
            dec = (dec.astype(np.float64) * scale).astype(np.float32)
        rows = SaeRows(ids, enc, bias, dec, self._thresholds(ids))
        self._check(lambda: _check_rows(rows))
        return rows

    def encoder(self) -> tuple[F32Array, F32Array]:
        """The whole encoder, folded piece by piece."""
        ids = np.arange(self.d_sae)
        out = scratch((self.d_sae, self.width))
        self._gather(out)
        bias = np.empty(self.d_sae, np.float32)
        for start, stop in block_rows(out.shape):
            part = ids[start:stop]
            norms = self._norms(self.dec.take(part)) if self.decoder_norms else None
            out[start:stop], bias[start:stop] = self._folded(out[start:stop], part, norms)
        self._check(lambda: check_finite(out, "the encoder"))
        self._check(lambda: check_finite(bias, "the encoder's bias"))
        return out, bias

    def whole(self) -> WholeEncoder:
        """The same; mapped where a feature's row lies in the file as it is multiplied with."""
        enc, thresholds = self.enc.array, self._thresholds(np.arange(self.d_sae))
        rows = enc.mapped() if isinstance(enc, FileArray) and self._rows_as_stored() else None
        if rows is None:
            folded, bias = self.encoder()
            return WholeEncoder(folded, "F32", bias, thresholds)
        bias = np.zeros(self.d_sae, np.float32) if self.bias is None else self.bias
        if self.input_offset is not None:
            ids, parts = np.arange(self.d_sae), []
            for start, block in enc.blocks():
                parts.append(self._folded(block, ids[start : start + len(block)], None)[1])
            bias = np.concatenate(parts)
        self._check(lambda: check_finite(bias, "the encoder's bias"))
        return WholeEncoder(rows, enc.type, bias, thresholds)

    def _rows_as_stored(self) -> bool:
        scaled = self.input_scale != 1.0 or self.r_mag is not None or self.decoder_norms
        return not (scaled or self.centred or self.enc.transposed)

    def tensors(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """Name, shape and type of every array in the file."""
        return tuple((name, one.shape, one.type) for name, one in sorted(self.data.arrays.items()))

    def _gather(self, out: F32Array) -> None:
        """The encoder as stored, a row for each feature, read from one end to the other."""
        for start, block in self.enc.array.blocks():
            if self.enc.transposed:
                # Across, a few features at a time: a column of a large array is a page a number.
                step = max(BLOCK_BYTES // (4 * max(len(block), 1)), 1)
                for first in range(0, self.d_sae, step):
                    last = min(first + step, self.d_sae)
                    out[first:last, start : start + len(block)] = block[:, first:last].T
            else:
                out[start : start + len(block)] = block

    def _folded(
        self, enc: F32Array, ids: I64Array, norms: F32Array | None
    ) -> tuple[F32Array, F32Array]:
        bias = np.zeros(len(ids), np.float32) if self.bias is None else self.bias[ids]
        row_scale = None if self.r_mag is None else np.exp(self.r_mag[ids].astype(np.float64))
        if norms is not None:
            row_scale = norms.astype(np.float64)
            bias = (bias * row_scale).astype(np.float32)
        return fold_encoder(
            enc,
            bias,
            input_offset=self.input_offset,
            input_scale=self.input_scale,
            row_scale=row_scale,
            centred=self.centred,
        )

    def _norms(self, dec: F32Array) -> F32Array | None:
        if not self.decoder_norms:
            return None
        norms: F32Array = np.linalg.norm(dec.astype(np.float64), axis=1).astype(np.float32)
        if not norms.all():
            self.data.fail("a direction of length 0, whose length the SAE divides by")
        return norms

    def _thresholds(self, ids: I64Array) -> F32Array | None:
        if self.gate is not GateKind.THRESHOLD:
            return None
        if self.b_gate is not None and self.r_mag is not None and self.bias is not None:
            return gate_as_threshold(self.b_gate[ids], self.bias[ids], self.r_mag[ids])
        if self.thresholds is None:
            return np.zeros(len(ids), np.float32)
        if isinstance(self.thresholds, float):
            return np.full(len(ids), max(self.thresholds, 0.0), np.float32)
        # Behind every JumpReLU that is read here stands a ReLU.
        return np.maximum(self.thresholds[ids], np.float32(0))

    def _check(self, checks: Callable[[], None]) -> None:
        self.data.check(checks)


def _check_rows(rows: SaeRows) -> None:
    for name in ("enc", "enc_bias", "dec", "thresholds"):
        values = getattr(rows, name)
        if values is not None:
            check_finite(values, {"enc": "the encoder", "dec": "a direction"}.get(name, name))


def scratch(shape: tuple[int, int]) -> F32Array:
    """Room for a whole encoder. Raises PackError if there is none."""
    if 4 * shape[0] * shape[1] <= SCRATCH_BYTES:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:
            return np.memmap(file, np.float32, mode="w+", shape=shape)
    except OSError as reason:
        raise PackError(
            "no room for the layer's whole encoder",
            found=reason.strerror or str(reason),
            expected=f"{4 * shape[0] * shape[1]} bytes in {tempfile.gettempdir()}",
        ) from None
