"""Which features tell two kinds of texts apart: chosen on one half of the texts, judged on the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.inspect.ahead import Ahead
from scope_runtime.inspect.sample import Pooled
from scope_runtime.inspect.statistics import (
    Bools,
    Floats,
    adjusted_p,
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
        push: how much of what parts the two kinds in what they go on with runs straight through the feature: a
            share of what the residual of the last layer does; likewise. None: that was not looked at.
        p: chance that any candidate would separate so well by chance; None: too few texts to say.
        fires: shares of the positive and of the negative texts where it is active.
        means: of the pooled activation in positive and in negative texts.
        chosen_by: how many halves chose it.
    """

    layer: int
    id: int
    auroc: float
    effect: float
    push: float | None
    p: float | None
    fires: tuple[float, float]
    means: tuple[float, float]
    chosen_by: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates in order, the best first.

    Those first that chance does not explain. Among them, and among the others, by AUROC and then by effect; where it
    is known what comes next, by the sum of a feature's place in that order and its place by push.

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
    push: Floats
    whole: float
    p: Floats


DEFAULTS = Criteria()
BLOCK_VALUES = 1 << 19
"""About so many activations are ranked at a time; it takes some 100 bytes for each."""


def rank(
    pooled: Pooled, positive: Bools, criteria: Criteria = DEFAULTS, ahead: Ahead | None = None
) -> Ranking:
    """Rank features by how well they tell positive texts from negative ones, and by what they do there.

    Each half of the texts chooses candidates and judges those of the other half; the two families of
    tests share the false-alarm rate. With so few texts that no p-value could reach it, all of them choose
    and judge, and nothing is called significant.

    Args:
        pooled: one number for each text and feature.
        positive: which texts are of the wanted kind, (n_texts,); some are and some are not.
        criteria: what is asked of a feature.
        ahead: what comes next where the texts end; then as many candidates again are chosen by push.

    Raises:
        PackError: the directions of the features are not all held.
    """
    one, two = halves(positive, seed=criteria.seed)
    held_out = all(
        _judged(int(positive[half].sum()), int((~positive[half]).sum()), criteria)
        for half in (one, two)
    )
    if not held_out:
        one = two = np.arange(len(positive))
    folds = [_fold(pooled, positive, one, two, criteria, ahead)]
    if held_out:
        folds.append(_fold(pooled, positive, two, one, criteria, ahead))
    chosen, fold_of = np.unique(np.concatenate([f.columns for f in folds]), return_inverse=True)
    n = np.bincount(fold_of, minlength=len(chosen))
    auroc_, effect, push = (
        np.bincount(fold_of, np.concatenate(each), len(chosen)) / n
        for each in (
            [f.auroc for f in folds],
            [f.effect for f in folds],
            [f.push for f in folds],
        )
    )
    p = np.ones(len(chosen))
    np.minimum.at(p, fold_of, len(folds) * np.concatenate([f.p for f in folds]))
    values = pooled.values[:, chosen]
    high, low = values[positive], values[~positive]
    explained = (p > criteria.false_alarm_rate) | (not held_out)
    order = _order(explained, auroc_, effect, push if ahead else None)
    whole = abs(sum(f.whole for f in folds) / len(folds))
    features = tuple(
        RankedFeature(
            layer=int(pooled.layers[chosen[i]]),
            id=int(pooled.ids[chosen[i]]),
            auroc=float(auroc_[i]),
            effect=float(effect[i]),
            push=float(push[i]) / whole if ahead and whole else None,
            p=float(p[i]) if held_out else None,
            fires=(float((high[:, i] > 0).mean()), float((low[:, i] > 0).mean())),
            means=(float(high[:, i].mean()), float(low[:, i].mean())),
            chosen_by=int(n[i]),
        )
        for i in order.tolist()
    )
    return Ranking(features, (len(one), len(two)), held_out, len(pooled.ids), criteria)


def fewest(n_negative: int, criteria: Criteria = DEFAULTS) -> int | None:
    """From how many positive texts on something can be judged against so many others; None: never."""
    others = n_negative // 2
    return next((n for n in range(2, 1000) if _judged(n // 2, others, criteria)), None)


def _judged(n_positive: int, n_negative: int, criteria: Criteria) -> bool:
    """Whether the least p-value that a half of so many texts can give would be significant."""
    if not n_positive or not n_negative:
        return False
    return math.comb(n_positive + n_negative, n_positive) * criteria.false_alarm_rate / 2 >= 1


def _order(explained: Bools, auroc_: Floats, effect: Floats, push: Floats | None) -> I64Array:
    """The features, the best first; see `Ranking`.

    Args:
        explained: by chance.
    """
    if push is None:
        return np.lexsort((-effect, -auroc_, explained))
    places = np.empty((2, len(auroc_)))
    places[0][np.lexsort((-effect, -auroc_))] = np.arange(len(auroc_))
    places[1][np.argsort(-push, kind="stable")] = np.arange(len(auroc_))
    return np.lexsort((-push, places.sum(axis=0), explained))


def _fold(
    pooled: Pooled,
    positive: Bools,
    choosing: I64Array,
    judging: I64Array,
    criteria: Criteria,
    ahead: Ahead | None,
) -> _Fold:
    measured = _measured(pooled, choosing, positive[choosing], ahead)
    columns = np.lexsort((-measured.effect, -measured.auroc))[: criteria.candidates]
    whole = 0.0
    if ahead is not None:
        # What is less active in positive texts, and would be missed there, no rule can act on.
        pushing = np.where(measured.auroc > 0.5, measured.push, -np.inf)
        best = np.argsort(-pushing, kind="stable")[: criteria.candidates]
        columns = np.union1d(columns, best[pushing[best] > 0])
        towards = ahead.towards(choosing, positive[choosing])
        whole = ahead.whole(judging, positive[judging], towards)
    values, kinds = pooled.values[:, columns][judging], positive[judging]
    n, seed = criteria.n_permutations, criteria.seed + 1
    p = adjusted_p(values, kinds, n_permutations=n, seed=seed) if len(columns) else np.empty(0)
    push = measured.slope[columns] * _rise(values, kinds)
    return _Fold(columns, auroc(values, kinds), effect_size(values, kinds), push, whole, p)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Every feature in some texts; slope and push are 0 where it is not known what comes next."""

    auroc: Floats
    effect: Floats
    slope: Floats
    push: Floats


def _measured(pooled: Pooled, texts: I64Array, kinds: Bools, ahead: Ahead | None) -> _Measured:
    """A block of features at a time."""
    n_features = len(pooled.ids)
    out = _Measured(*np.zeros((4, n_features)))
    towards = None if ahead is None else ahead.towards(texts, kinds)
    for here in _blocks(pooled.layers, max(BLOCK_VALUES // len(texts), 1)):
        values = np.asarray(pooled.values[:, here])[texts]
        out.auroc[here], out.effect[here] = auroc(values, kinds), effect_size(values, kinds)
        if ahead is not None and towards is not None:
            layer = int(pooled.layers[here.start])
            out.slope[here] = ahead.slopes(layer, pooled.ids[here], towards)
            out.push[here] = out.slope[here] * _rise(values, kinds)
    return out


def _blocks(layers: I64Array, size: int) -> Iterator[slice]:
    """Features in blocks of one layer each; `layers` is ascending."""
    for layer in np.unique(layers):
        first, after = np.searchsorted(layers, [layer, layer + 1]).tolist()
        for start in range(first, after, size):
            yield slice(start, min(start + size, after))


def _rise(values: npt.NDArray[np.floating], positive: Bools) -> Floats:
    """By how much the mean is larger in positive texts, per feature."""
    wide = values.astype(np.float64)
    return np.asarray(wide[positive].mean(axis=0) - wide[~positive].mean(axis=0))
