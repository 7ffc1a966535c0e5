"""Features that are parts of one: SAEs split what one direction would do among several latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scope_runtime.inspect.statistics import Floats
from scope_runtime.pack_types import F32Array

CO_FIRING = 0.5
COSINE = 0.6


def correlation(activations: F32Array) -> Floats:
    """Pearson's correlation between features over tokens, (n, n); 0 where one does not vary.

    Args:
        activations: (n_tokens, n).
    """
    centred = activations - activations.mean(axis=0, dtype=np.float64)
    return _normed(centred.T)


def cosines(directions: F32Array) -> Floats:
    """Cosines between directions (n, width), (n, n); 0 with one of no length."""
    return _normed(directions.astype(np.float64))


def _normed(rows: npt.NDArray[np.float64]) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return np.asarray(unit @ unit.T)


def grouped(co_firing: Floats, cosine: Floats) -> tuple[tuple[int, ...], ...]:
    """Features in groups, both in the order given, which is the rank's.

    Each joins the first group whose leading feature it fires with (correlation `CO_FIRING` or more) or
    whose direction it shares (cosine `COSINE` or more); else it leads a group of its own.

    Args:
        co_firing: (n, n).
        cosine: (n, n).
    """
    groups: list[list[int]] = []
    for feature in range(len(co_firing)):
        for group in groups:
            leader = group[0]
            if co_firing[feature, leader] >= CO_FIRING or cosine[feature, leader] >= COSINE:
                group.append(feature)
                break
        else:
            groups.append([feature])
    return tuple(map(tuple, groups))


def group_numbers(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """Which group each feature is in."""
    return {feature: number for number, group in enumerate(groups) for feature in group}
