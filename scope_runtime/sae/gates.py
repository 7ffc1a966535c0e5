"""From pre-activations of every latent to those that are active."""

from __future__ import annotations

import numpy as np

from scope_runtime.pack_types import F32Array, I64Array
from scope_runtime.policy.model import GateKind


def largest(scores: F32Array, k: int) -> I64Array:
    """Places of the k largest, ascending; of equals those at lower places.

    That is the rule of the hook's exact gate (``native/src/topk.cpp``): a latent is active where
    fewer than k are larger, or equal with a lower id.
    """
    if k >= len(scores):
        return np.arange(len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= least)
    if len(places) > k:
        equal = np.flatnonzero(scores[places] == least)
        places = np.delete(places, equal[k - len(places) :])
    return places


def opened(
    scores: F32Array, gate: GateKind, k: int | None, thresholds: F32Array | None
) -> I64Array:
    """Places that the gate lets through of one token's pre-activations (d_sae,), ascending."""
    if gate is GateKind.TOPK and k is not None:
        return largest(scores, k)
    if gate is GateKind.THRESHOLD and thresholds is not None:
        return np.flatnonzero(scores > thresholds)
    return np.flatnonzero(scores > 0)
