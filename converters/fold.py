"""An SAE's own way to encode, folded into the runtime's formula: ``z = gate(w @ h + b)``."""

from __future__ import annotations

import numpy as np

from scope_runtime.pack_types import F32Array


def fold_encoder(
    enc: F32Array,
    enc_bias: F32Array,
    *,
    input_offset: F32Array | None = None,
    input_scale: float = 1.0,
) -> tuple[F32Array, F32Array]:
    """Rows and bias that give ``enc @ (scale * h - offset) + bias`` as ``w @ h + b``.

    Sums are taken in F64: over a few thousand products F32 would lose what the fold must keep.

    Args:
        enc: encoder rows, (n, width).
        enc_bias: (n,).
        input_offset: what the SAE takes off its input first (``b_dec``), (width,).
        input_scale: what it multiplies its input with before that.

    Returns:
        ``w`` (n, width) and ``b`` (n,), F32; the arguments themselves where there is nothing to
        fold.
    """
    if input_offset is None and input_scale == 1.0:
        return enc, enc_bias
    rows = enc.astype(np.float64)
    bias = enc_bias.astype(np.float64)
    if input_offset is not None:
        bias = bias - rows @ input_offset.astype(np.float64)
    return (rows * input_scale).astype(np.float32), bias.astype(np.float32)
