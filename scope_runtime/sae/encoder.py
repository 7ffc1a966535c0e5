"""A layer's whole encoder, where it lies: in its file, in the file's own type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scope_runtime.pack_types import F32Array, I64Array

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that rows can have, and the bytes of a number; numpy sees BF16 as U16."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeEncoder:
    """Every encoder row of a layer, the SAE's conventions folded in: ``gate(rows @ h + bias)``.

    Attributes:
        rows: (d_sae, width); mapped from the file where they lie there as they are needed.
        type: ``F32``, ``F16`` or ``BF16``. Rows are those numbers exactly; nothing was rounded here.
        bias: (d_sae,).
        thresholds: for the gate ``threshold``, (d_sae,).
    """

    rows: npt.NDArray[Any] = field(repr=False)
    type: str
    bias: F32Array = field(repr=False)
    thresholds: F32Array | None = field(default=None, repr=False)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return int(self.rows.shape[0])

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.rows.shape[1])

    def take(self, which: I64Array | slice) -> F32Array:
        """Some rows, in F32 and exact; of F32 rows in a row a view."""
        rows = self.rows[which]
        if self.type == "BF16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(rows.astype(np.float32, copy=False))
