"""What is too much for memory: active latents and large arrays, in temporary files that go with them."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scope_runtime.pack_types import F32Array
from scope_runtime.sae.active import Active

IN_MEMORY_BYTES = 64 << 20
"""Up to so many bytes stay in memory."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where the latents of some tokens are: ``first`` is the first token's number over all texts."""

    first: int
    n_tokens: int
    n_active: int
    at: int


class Kept:
    """Active latents, added token after token and read again in that order."""

    def __init__(self) -> None:
        # No context: it is read for as long as somebody holds this, and closed when nobody does.
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._pieces: dict[int, list[_Piece]] = {}
        self._d_sae: dict[int, int] = {}
        self._end = 0

    @property
    def d_sae(self) -> dict[int, int]:
        """Number of latents per layer, layers ascending."""
        return dict(sorted(self._d_sae.items()))

    def add(self, layer: int, first: int, active: Active) -> None:
        """Keeps some tokens' latents.

        Args:
            layer: that they are of.
            first: number of the first token over all texts; what was added before lies before it.
            active: of these tokens.
        """
        self._file.seek(self._end)
        parts = (active.indptr.astype(np.int64), active.ids, active.values)
        for part in parts:
            self._file.write(np.ascontiguousarray(part).data)
        piece = _Piece(first, active.n_tokens, len(active.ids), self._end)
        self._pieces.setdefault(layer, []).append(piece)
        self._d_sae[layer] = active.d_sae
        self._end += sum(part.nbytes for part in parts)

    def pieces(self, layer: int) -> Iterator[tuple[int, Active]]:
        """The latents as they were added, and the number of the first token of each piece."""
        for piece in self._pieces[layer]:
            n = piece.n_tokens + 1
            self._file.seek(piece.at)
            indptr = np.frombuffer(self._file.read(8 * n), np.int64)
            ids = np.frombuffer(self._file.read(4 * piece.n_active), np.int32)
            values = np.frombuffer(self._file.read(4 * piece.n_active), np.float32)
            yield piece.first, Active(indptr, ids, values, self._d_sae[layer])


class Joined:
    """The latents of two, one after the other, the other's tokens counted on from ``n_tokens``."""

    def __init__(self, one: Kept, two: Kept, n_tokens: int) -> None:
        self._one, self._two, self._n_tokens = one, two, n_tokens

    @property
    def d_sae(self) -> dict[int, int]:
        """As of `Kept`."""
        return self._one.d_sae

    def pieces(self, layer: int) -> Iterator[tuple[int, Active]]:
        """As of `Kept`."""
        yield from self._one.pieces(layer)
        for first, active in self._two.pieces(layer):
            yield self._n_tokens + first, active


def roomy(shape: tuple[int, int]) -> F32Array:
    """An array of zeros; a large one lies in a file that is gone with it."""
    if 4 * shape[0] * shape[1] <= IN_MEMORY_BYTES:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
