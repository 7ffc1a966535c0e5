"""An SAE's own way to encode, folded into the runtime's formula: ``z = gate(w @ h + b)``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scope_runtime.pack_types import F32Array


def fold_encoder(
    enc: F32Array,
    enc_bias: F32Array,
    *,
    input_offset: F32Array | None = None,
    input_scale: float = 1.0,
    row_scale: npt.NDArray[np.float64] | None = None,
    centred: bool = False,
) -> tuple[F32Array, F32Array]:
    """Rows and bias that give ``row_scale * (enc @ (scale * h' - offset)) + bias`` as ``w @ h + b``.

    ``h'`` is h, or h less its mean. Sums are taken in F64: over a few thousand products F32 would
    lose what the fold must keep.

    Args:
        enc: encoder rows, (n, width).
        enc_bias: (n,).
        input_offset: what the SAE takes off its input first (``b_dec``), (width,).
        input_scale: what it multiplies its input with before that.
        row_scale: per feature, what it multiplies the product with (not the bias), (n,).
        centred: whether it was trained on a model whose weights TransformerLens had centred
            (``center_writing_weights``). Everything that is written to the residual stream then has
            the mean 0, so the SAE saw ``h - mean(h)``; taking the mean off each row is the same.

    Returns:
        ``w`` (n, width) and ``b`` (n,), F32; the arguments themselves where there is nothing to
        fold.
    """
    if input_offset is None and input_scale == 1.0 and row_scale is None and not centred:
        return enc, enc_bias
    rows = enc.astype(np.float64)
    bias = enc_bias.astype(np.float64)
    if row_scale is not None:
        rows = rows * row_scale[:, None]
    if input_offset is not None:
        bias = bias - rows @ input_offset.astype(np.float64)
    if centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    return (rows * input_scale).astype(np.float32), bias.astype(np.float32)


def gate_as_threshold(b_gate: F32Array, b_mag: F32Array, r_mag: F32Array) -> F32Array:
    """Thresholds that make a gated SAE a JumpReLU one, exactly, (n,).

    A gated SAE's activation is ``relu(m)`` where ``g > 0``, with ``g = p + b_gate`` and
    ``m = exp(r_mag) * p + b_mag`` of the same product p. ``g > 0`` is ``p > -b_gate``, which is
    ``m > b_mag - exp(r_mag) * b_gate``; together with the ReLU, m above the larger of that and 0.
    """
    exact = b_mag.astype(np.float64) - np.exp(r_mag.astype(np.float64)) * b_gate
    return np.maximum(exact, 0).astype(np.float32)
