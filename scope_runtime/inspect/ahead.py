"""What a model is about to say where texts end, and how far a direction pushes towards it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.inspect.statistics import Bools, Floats
from scope_runtime.pack_types import F32Array, I64Array

if TYPE_CHECKING:
    from scope_runtime.inspect.vocabulary import OutputHead

TEXTS_AT_ONCE = 64
DIRECTION_BYTES = 16 << 20
"""About as much of the directions is held at a time."""

Directions = Callable[[int, I64Array], F32Array]
"""Directions of some latents of a layer, (n_ids, n_embd). Raises PackError where they are not held."""


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """What comes next at the end of each text.

    Attributes:
        words: the rows of the output head, each as likely as its token is next, (n_texts, n_embd).
        residuals: of the last of the layers, at the last token, (n_texts, n_embd).
        directions: of latents.
    """

    words: F32Array = field(repr=False)
    residuals: F32Array = field(repr=False)
    directions: Directions = field(repr=False)

    def towards(self, texts: I64Array, positive: Bools) -> Floats:
        """What some texts go on with where they are positive, rather than where they are not, (n_embd,).

        Along it the residual makes the former more likely and the latter less.
        """
        return _difference(self.words[texts], positive)

    def slopes(self, layer: int, ids: I64Array, towards: Floats) -> Floats:
        """How far a unit of each latent goes along it, (n_ids,).

        It is the straight way to the output head: what later blocks make of a direction is not in it.
        """
        step = max(DIRECTION_BYTES // (4 * len(towards)), 1)
        parts = [
            self.directions(layer, ids[first : first + step]).astype(np.float64) @ towards
            for first in range(0, len(ids), step)
        ]
        return np.concatenate([*parts, np.empty(0)])

    def whole(self, texts: I64Array, positive: Bools, towards: Floats) -> float:
        """How much farther the residual goes along it in positive texts than in the others."""
        return float(_difference(self.residuals[texts], positive) @ towards)


def _difference(values: F32Array, positive: Bools) -> Floats:
    wide = values.astype(np.float64)
    return np.asarray(wide[positive].mean(axis=0) - wide[~positive].mean(axis=0))


class NextWords:
    """What is likely next, text after text, as one row of the output head each: see `Ahead.words`."""

    def __init__(self, head: OutputHead) -> None:
        self._head = head
        self._done: list[F32Array] = []
        self._waiting: list[F32Array] = []

    def add(self, logits: F32Array) -> None:
        """Takes the logits of a text's last token, (n_vocab,). Raises ModelError where the head cannot be read."""
        shares = np.exp(logits - logits.max())
        self._waiting.append(shares / shares.sum())
        # The head is read once for so many; their logits would be too much to hold all.
        if len(self._waiting) == TEXTS_AT_ONCE:
            self._mix()

    def rows(self) -> F32Array:
        """Those of all texts, (n_texts, n_embd). Raises as `add`."""
        if self._waiting:
            self._mix()
        return np.concatenate(self._done)

    def _mix(self) -> None:
        self._done.append(self._head.mixed(np.stack(self._waiting)))
        self._waiting.clear()
