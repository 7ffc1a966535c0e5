"""Which latents are active at which token: a sparse matrix of tokens and latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scope_runtime.pack_types import F32Array, I64Array

I32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Active:
    """The active latents of some tokens, in compressed rows.

    Attributes:
        indptr: token t's latents are ``ids[indptr[t]:indptr[t + 1]]``, (n_tokens + 1,).
        ids: numbers of latents in the SAE, ascending within a token.
        values: their activations, as long as ``ids``. Under a top-k gate one can be 0 or negative.
        d_sae: number of latents that there are.
    """

    indptr: I64Array = field(repr=False)
    ids: I32Array = field(repr=False)
    values: F32Array = field(repr=False)
    d_sae: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.indptr) - 1

    def token(self, index: int) -> tuple[I32Array, F32Array]:
        """One token's latents and their activations, ids ascending."""
        here = slice(int(self.indptr[index]), int(self.indptr[index + 1]))
        return self.ids[here], self.values[here]

    def strongest(self, index: int, n: int) -> tuple[I32Array, F32Array]:
        """One token's n most active latents, the most active first; of equals the lower id first."""
        ids, values = self.token(index)
        order = np.argsort(-values, kind="stable")[:n]
        return ids[order], values[order]

    def of(self, ids: Iterable[int]) -> F32Array:
        """Activations of chosen latents at every token, 0 where not active, (n_tokens, n_ids)."""
        wanted, place = np.unique(np.fromiter(ids, np.int64), return_inverse=True)
        out = np.zeros((self.n_tokens, len(wanted)), np.float32)
        if len(wanted):
            at = np.searchsorted(wanted, self.ids).clip(max=len(wanted) - 1)
            hit = wanted[at] == self.ids
            tokens = np.repeat(np.arange(self.n_tokens), np.diff(self.indptr))
            out[tokens[hit], at[hit]] = self.values[hit]
        return out[:, place]

    @classmethod
    def concatenated(cls, parts: Iterable[Active], d_sae: int) -> Active:
        """Tokens of several, one after the other."""
        parts = list(parts)
        counts = [np.diff(part.indptr) for part in parts]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*counts, []]))])
        return cls(
            indptr.astype(np.int64),
            np.concatenate([*(part.ids for part in parts), np.empty(0, np.int32)]).astype(np.int32),
            np.concatenate([*(part.values for part in parts), np.empty(0, np.float32)]),
            d_sae,
        )
