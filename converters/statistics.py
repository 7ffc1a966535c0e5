"""What features do on a sample of residuals: firing rates, quantiles, and thresholds that stand in for top-k."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import UsageError
from scope_runtime.pack_types import F32Array, PackLayer, PackStats, layer_name
from scope_runtime.policy.model import GateKind

LEVELS = (0.5, 0.9, 0.99)
MAX_KEPT_BYTES = 2 << 30
FEWEST_FIRINGS = 20
STRONGLY = 1.5


@dataclass(frozen=True, slots=True)
class Threshold:
    """The threshold that best tells where the exact top-k chooses a feature.

    Attributes:
        value: the feature is on where its projection exceeds it.
        precision: share of the tokens where it is on that the top-k chooses too.
        recall: share of the tokens where the top-k chooses it at which it is on.
        n_chosen: tokens at which the top-k chooses it.
    """

    value: float
    precision: float
    recall: float
    n_chosen: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Shift:
    """A statistic that is far from the one that the pack recorded before."""

    layer: int
    id: int
    what: str
    before: float
    now: float

    def __str__(self) -> str:
        return (
            f"layer {layer_name(self.layer)}, feature {self.id}: {self.what} is {self.now:.4g}, "
            f"the pack recorded {self.before:.4g}"
        )


@dataclass(eq=False)
class LayerSample:
    """One layer's features over the tokens seen so far.

    Everything is kept, so that quantiles and thresholds are exact; what does not fit is refused.
    """

    layer: PackLayer
    n_tokens: int = 0
    _projections: list[F32Array] = field(default_factory=list)
    _activations: list[F32Array] = field(default_factory=list)
    _chosen: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    _kept_bytes: int = 0

    def add(self, h: F32Array) -> None:
        """More tokens' residuals, (n_tokens, width).

        Raises:
            UsageError: the sample has become too long to keep.
        """
        projection, activation = gated(self.layer, h)
        self._kept_bytes += projection.nbytes + activation.nbytes
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise UsageError(
                f"the sample is too long for {len(self.layer.ids)} features",
                found=f"{self.n_tokens + len(h)} tokens",
                hint="Take fewer texts, or split the pack",
            )
        self.n_tokens += len(h)
        self._projections.append(projection)
        self._activations.append(activation)
        if self.has_topk:
            self._chosen.append(chosen(self.layer, h))

    @property
    def has_topk(self) -> bool:
        """Whether the pack has what the SAE's exact top-k takes, whatever its gate."""
        return self.layer.full_enc is not None and self.layer.k is not None

    def stats(self) -> PackStats:
        """Statistics of the gated activations."""
        activations = np.concatenate(self._activations)
        n = activations.shape[1]
        fired = activations != 0
        counts = fired.sum(axis=0)
        quantiles = np.zeros((n, len(LEVELS)), np.float32)
        mean = np.zeros(n, np.float32)
        largest = np.zeros(n, np.float32)
        for i in np.flatnonzero(counts).tolist():
            values = activations[fired[:, i], i]
            mean[i] = values.mean(dtype=np.float64)
            largest[i] = values.max()
            quantiles[i] = np.quantile(values, LEVELS)
        rate = (counts / max(self.n_tokens, 1)).astype(np.float32)
        return PackStats(largest, mean, rate, LEVELS, quantiles)

    def thresholds(self) -> list[Threshold] | None:
        """Per feature the best stand-in for the exact top-k; None where that is not to be had."""
        if not self.has_topk:
            return None
        projections = np.concatenate(self._projections)
        on = np.concatenate(self._chosen)
        return [best_threshold(projections[:, i], on[:, i]) for i in range(on.shape[1])]


def gated(layer: PackLayer, h: F32Array) -> tuple[F32Array, F32Array]:
    """The features' projections and activations on residuals (n_tokens, width), each (n_tokens, n)."""
    product = h.astype(np.float64) @ layer.enc.T.astype(np.float64)
    projection = np.asarray(product + layer.enc_bias).astype(np.float32)
    if layer.gate is GateKind.NONE:
        return projection, projection
    if layer.gate is GateKind.TOPK:
        on = chosen(layer, h)
    elif layer.thresholds is not None and layer.gate is GateKind.THRESHOLD:
        on = projection > layer.thresholds
    else:
        on = projection > 0
    return projection, np.where(on, projection, np.float32(0))


def chosen(layer: PackLayer, h: F32Array) -> npt.NDArray[np.bool_]:
    """Where the layer's exact top-k chooses the pack's features, (n_tokens, n)."""
    if layer.full_enc is None or layer.full_enc_bias is None or layer.k is None:
        raise UsageError(f"layer {layer_name(layer.layer)} has no whole encoder")
    every = h @ np.asarray(layer.full_enc).T + layer.full_enc_bias
    # Of equals the one with the smaller number is chosen, as in the hook.
    least = -np.partition(-every, layer.k - 1, axis=1)[:, layer.k - 1 : layer.k]
    here = every[:, layer.ids]
    above, equal = here > least, here == least
    room = layer.k - (every > least).sum(axis=1, keepdims=True)
    before = np.cumsum(every == least, axis=1)[:, layer.ids]
    return np.asarray(above | (equal & (before <= room)))


def best_threshold(projection: F32Array, chosen: npt.NDArray[np.bool_]) -> Threshold:
    """The threshold of largest F1 against ``chosen``; of equals the highest.

    It lies halfway between two projections that were seen. A feature that is never chosen gets the
    largest projection seen, so that it stays off.
    """
    order = np.argsort(-projection, kind="stable")
    values, hits = projection[order].astype(np.float64), np.cumsum(chosen[order])
    n_chosen = int(hits[-1]) if hits.size else 0
    if not n_chosen:
        return Threshold(float(values[0]) if values.size else 0.0, 0.0, 0.0, 0)
    # Only between different values can a threshold lie.
    ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))
    n_on = ends + 1
    f1 = 2 * hits[ends] / (n_on + n_chosen)
    best = int(ends[np.argmax(f1)])
    below = values[best + 1] if best + 1 < values.size else values[best] - 1.0
    value = np.float32((values[best] + below) / 2)
    if not below <= value < values[best]:  # neighbours in F32 leave no room between them
        value = np.float32(below)
    n_right = int(hits[best])
    return Threshold(float(value), n_right / (best + 1), n_right / n_chosen, n_chosen)


def shifts(layer: PackLayer, now: PackStats, n_tokens: int) -> list[Shift]:
    """Statistics more than half off those that the pack recorded, where enough was seen to say so."""
    before = layer.stats
    if before is None:
        return []
    out = []
    for i, id in enumerate(layer.ids.tolist()):
        expected = max(float(before.firing_rate[i]), float(now.firing_rate[i])) * n_tokens
        if expected < FEWEST_FIRINGS:
            continue
        for what, old, new in (
            ("firing rate", float(before.firing_rate[i]), float(now.firing_rate[i])),
            ("mean activation", float(before.mean[i]), float(now.mean[i])),
        ):
            small, large = sorted((abs(old), abs(new)))
            if large > STRONGLY * small or old * new < 0:
                out.append(Shift(layer.layer, id, what, old, new))
    return out
