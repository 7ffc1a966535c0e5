"""Which features tell two kinds of texts apart: chosen on one half of the texts, judged on the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scope_runtime.inspect.sample import Pooled
from scope_runtime.inspect.statistics import (
    Bools,
    Floats,
    adjusted_p,
    arrangements,
    auroc,
    effect_size,
    halves,
)
from scope_runtime.pack_types import I64Array


@dataclass(frozen=True, slots=True)
class Criteria:
    """What a ranking is held against.

    Attributes:
        candidates: how many features each half may choose.
        false_alarm_rate: chance that any feature is called significant where the kinds mean nothing.
        n_permutations: of the test.
        seed: of the halves and the permutations.
    """

    candidates: int = 20
    false_alarm_rate: float = 0.01
    n_permutations: int = 9_999
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RankedFeature:
    """One feature, measured on texts that had no say in choosing it.

    Attributes:
        auroc: chance that a positive text lies above a negative one; 0.5 is none. Of a feature that both
            halves chose, the mean of what each half says on the other's choice.
        effect: Hedges' g, likewise.
        p: chance that any candidate would separate so well by chance; None: too few texts to say.
        fires: shares of the positive and of the negative texts where it is active.
        means: of the pooled activation in positive and in negative texts.
        chosen_by: how many halves chose it.
    """

    layer: int
    id: int
    auroc: float
    effect: float
    p: float | None
    fires: tuple[float, float]
    means: tuple[float, float]
    chosen_by: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates in order, the best first: by AUROC, then by effect.

    Attributes:
        features: the candidates of both halves.
        halves: how many texts either half has; the same texts twice where nothing could be held out.
        held_out: whether the halves are two.
        n_features: how many features were looked at.
    """

    features: tuple[RankedFeature, ...]
    halves: tuple[int, int]
    held_out: bool
    n_features: int
    criteria: Criteria

    @property
    def significant(self) -> tuple[RankedFeature, ...]:
        """Those that chance does not explain."""
        rate = self.criteria.false_alarm_rate
        return tuple(each for each in self.features if each.p is not None and each.p <= rate)


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """What one half chose, as columns, and what the other says of it."""

    columns: I64Array
    auroc: Floats
    effect: Floats
    p: Floats


DEFAULTS = Criteria()
BLOCK_VALUES = 1 << 19
"""About so many activations are ranked at a time; it takes some 100 bytes for each."""


def rank(pooled: Pooled, positive: Bools, criteria: Criteria = DEFAULTS) -> Ranking:
    """Rank features by how well they tell positive texts from negative ones.

    Each half of the texts chooses candidates and judges those of the other half; the two families of
    tests share the false-alarm rate. With so few texts that no p-value could reach it, all of them choose
    and judge, and nothing is called significant.

    Args:
        pooled: one number for each text and feature.
        positive: which texts are of the wanted kind, (n_texts,); some are and some are not.
    """
    one, two = halves(positive, seed=criteria.seed)
    level = criteria.false_alarm_rate / 2
    held_out = all(arrangements(positive[half]) * level >= 1 for half in (one, two))
    if not held_out:
        one = two = np.arange(len(positive))
    folds = [_fold(pooled, positive, one, two, criteria)]
    if held_out:
        folds.append(_fold(pooled, positive, two, one, criteria))
    chosen, fold_of = np.unique(np.concatenate([f.columns for f in folds]), return_inverse=True)
    n = np.bincount(fold_of, minlength=len(chosen))
    auroc_, effect = (
        np.bincount(fold_of, np.concatenate(each), len(chosen)) / n
        for each in ([f.auroc for f in folds], [f.effect for f in folds])
    )
    p = np.ones(len(chosen))
    np.minimum.at(p, fold_of, len(folds) * np.concatenate([f.p for f in folds]))
    values = pooled.values[:, chosen]
    high, low = values[positive], values[~positive]
    features = tuple(
        RankedFeature(
            layer=int(pooled.layers[chosen[i]]),
            id=int(pooled.ids[chosen[i]]),
            auroc=float(auroc_[i]),
            effect=float(effect[i]),
            p=float(p[i]) if held_out else None,
            fires=(float((high[:, i] > 0).mean()), float((low[:, i] > 0).mean())),
            means=(float(high[:, i].mean()), float(low[:, i].mean())),
            chosen_by=int(n[i]),
        )
        for i in np.lexsort((-effect, -auroc_)).tolist()
    )
    return Ranking(features, (len(one), len(two)), held_out, len(pooled.ids), criteria)


def _fold(
    pooled: Pooled, positive: Bools, choosing: I64Array, judging: I64Array, criteria: Criteria
) -> _Fold:
    columns = _chosen(pooled, choosing, positive[choosing], criteria.candidates)
    values, kinds = pooled.values[:, columns][judging], positive[judging]
    n, seed = criteria.n_permutations, criteria.seed + 1
    p = adjusted_p(values, kinds, n_permutations=n, seed=seed) if len(columns) else np.empty(0)
    return _Fold(columns, auroc(values, kinds), effect_size(values, kinds), p)


def _chosen(pooled: Pooled, texts: I64Array, kinds: Bools, n: int) -> I64Array:
    """The n features that some texts put first; a block of them is measured at a time."""
    n_features = len(pooled.ids)
    step = max(BLOCK_VALUES // len(texts), 1)
    area, effect = np.empty(n_features), np.empty(n_features)
    for first in range(0, n_features, step):
        here = slice(first, first + step)
        values = np.asarray(pooled.values[:, here])[texts]
        area[here], effect[here] = auroc(values, kinds), effect_size(values, kinds)
    return np.lexsort((-effect, -area))[:n]
