"""Half the bytes for single tokens: an F16 copy of an F32 encoder says which latents may be active, F32 which are.

What the copy is off by is known for every row, so nothing that could be active is left out: by
Cauchy and Schwarz ``|w·h - w16·h| <= ||w - w16|| ||h||``.
"""

from __future__ import annotations

import numpy as np

from scope_runtime.errors import PackError
from scope_runtime.pack_types import F32Array, I64Array
from scope_runtime.policy.model import GateKind
from scope_runtime.sae.encoder import WholeEncoder
from scope_runtime.sae.gates import opened
from scope_runtime.sae.product import Product

MOST_TOKENS = 8
"""With more at once the product no longer waits for memory, and the copy gains nothing."""
_BLOCK_BYTES = 32 << 20
_ROUNDING = 2e-6  # of ||w|| ||h||: what F32 sums of many products are off by, with room to spare


class Preselection:
    """The copy, 2 bytes a number, and how far each of its rows is off.

    Raises:
        PackError: no memory for it, rows that are not finite, or numbers that F16 does not reach.
    """

    def __init__(self, encoder: WholeEncoder, n_threads: int | None = None) -> None:
        self.encoder = encoder
        try:
            rows = np.empty(encoder.rows.shape, np.float16)
        except MemoryError:
            raise PackError(
                "no memory for an F16 copy of the encoder",
                expected=f"{encoder.rows.size * 2} bytes",
            ) from None
        self._off = np.empty(encoder.d_sae, np.float32)
        step = max(_BLOCK_BYTES // (4 * encoder.width), 1)
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, encoder.d_sae, step):
                here = slice(first, first + step)
                exact = encoder.take(here)
                rows[here] = exact
                rounded = np.linalg.norm(exact, axis=1) * _ROUNDING
                self._off[here] = np.linalg.norm(exact - rows[here], axis=1) + rounded
        if not np.isfinite(self._off).all():
            raise PackError("the encoder is not finite, or reaches beyond F16")
        self._copy = Product(WholeEncoder(rows, "F16", encoder.bias), n_threads)

    def active(self, h: F32Array, gate: GateKind, k: int | None) -> list[tuple[I64Array, F32Array]]:
        """Per token the latents that the gate lets through, ascending, and their pre-activations in F32."""
        about = self._copy(h) + self.encoder.bias
        out = []
        for residual, scores in zip(h, about, strict=True):
            off = self._off * np.linalg.norm(residual)
            places = self._candidates(scores, off, gate, k)
            exact = self.encoder.take(places) @ residual + self.encoder.bias[places]
            thresholds = self.encoder.thresholds
            kept = opened(exact, gate, k, None if thresholds is None else thresholds[places])
            out.append((places[kept], exact[kept]))
        return out

    def _candidates(
        self, scores: F32Array, off: F32Array, gate: GateKind, k: int | None
    ) -> I64Array:
        most = scores + off
        if gate is GateKind.TOPK and k is not None:
            # k latents reach this for certain, so none that cannot is among the k largest.
            least = np.partition(scores - off, len(scores) - k)[len(scores) - k]
            return np.flatnonzero(most >= least)
        thresholds = self.encoder.thresholds
        return np.flatnonzero(most > (0 if thresholds is None else thresholds))
