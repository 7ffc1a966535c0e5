"""Which features differ between two texts, two sets of texts, two models, or with and without a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.differences import Floats, Permutations, effects, least_p, permuted
from scope_runtime.inspect.features import FeatureRef, feature
from scope_runtime.inspect.reading import Reading
from scope_runtime.inspect.sample import Pool
from scope_runtime.inspect.trace import columns, encoded, settled
from scope_runtime.pack_types import F32Array
from scope_runtime.sae import Active, SaeLayers


@dataclass(frozen=True, slots=True)
class Spike:
    """Where a feature was most active in one sample: text, token, activation. Activation 0: nowhere."""

    text: int
    position: int
    activation: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One feature in both samples.

    Attributes:
        a: mean over the texts of what `Pool` makes of each; b likewise.
        effect: b's mean less a's in standard deviations (`differences.effects`); None: one text each has none.
        p: adjusted for all features that were looked at; None: too few texts to say.
        spike_a: where it was most active; spike_b likewise.
    """

    feature: FeatureRef
    a: float
    b: float
    effect: float | None
    p: float | None
    spike_a: Spike
    spike_b: Spike

    @property
    def spiked(self) -> str:
        """The sample in which it was most active at any token: ``a`` or ``b``."""
        return "b" if self.rise >= 0 else "a"

    @property
    def rise(self) -> float:
        """By how much its largest activation is larger in b."""
        return self.spike_b.activation - self.spike_a.activation


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two samples of texts.

    Attributes:
        names: of the samples, for people.
        a: the texts of one; b of the other.
        at: how a text's tokens became one number.
        paired: whether text i of a and text i of b belong together.
        aligned: whether they are the same tokens as well.
        differences: the features that differ most, the largest effect first; without effects the largest difference.
        activations_a: of those features at each token of each text, (n_tokens, n_differences); activations_b likewise.
        n_features: how many were looked at: active at some token of some text.
        n_significant: how many of them all chance does not explain; None: too few texts to say.
        test: how that was judged.
        alpha: the chance that any is called so while nothing differs.
        needed: texts of each sample from which on something could be said.
    """

    names: tuple[str, str]
    a: tuple[Reading, ...] = field(repr=False)
    b: tuple[Reading, ...] = field(repr=False)
    at: Pool
    paired: bool
    aligned: bool
    differences: tuple[Difference, ...]
    activations_a: tuple[F32Array, ...] = field(repr=False)
    activations_b: tuple[F32Array, ...] = field(repr=False)
    n_features: int
    n_significant: int | None
    test: Permutations | None = field(repr=False)
    alpha: float
    needed: int

    @property
    def spiked(self) -> Difference | None:
        """Of the list the feature whose largest activations differ most; None where none do."""
        best = max(self.differences, key=lambda each: abs(each.rise), default=None)
        return best if best is not None and best.rise else None

    @property
    def significant(self) -> tuple[Difference, ...]:
        """Those of the list that chance does not explain."""
        return tuple(
            each for each in self.differences if each.p is not None and each.p <= self.alpha
        )


def compare(
    a: Sequence[Reading],
    b: Sequence[Reading],
    saes: SaeLayers,
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool | None = None,
    at: Pool | str = Pool.MEAN,
    alpha: float = 0.05,
    top: int = 10,
    seed: int = 0,
) -> Comparison:
    """Which features differ, residuals taken as a policy left them.

    Args:
        a: texts; b: others, or the same texts as another model or another policy has them.
        saes: whole layers, which the readings have.
        paired: whether text i of a belongs to text i of b; by default where they have prompts or all tokens in common.
        at: how a text's tokens become one number.
        alpha: the chance of naming any feature as different while nothing differs, 0 to 1.
        top: how many features to list.
        seed: of the test's draws.

    Raises:
        UsageError: a sample is empty, pairs do not go up, or a number is out of range.
        PackError: a layer cannot be used as a whole.
    """
    if not a or not b:
        raise UsageError("there is nothing to compare", found=f"{len(a)} and {len(b)} texts")
    if top < 1 or not 0 < alpha < 1:
        raise UsageError(
            "top or alpha is out of range",
            found=f"top {top}, alpha {alpha:g}",
            expected="1 or more, 0 to 1",
        )
    pairs = _belong(a, b) if paired is None else paired
    if pairs and len(a) != len(b):
        raise UsageError("texts do not pair up", found=f"{len(a)} and {len(b)}")
    how = Pool(at)
    active_a = [encoded(each, saes, after=True) for each in a]
    active_b = [encoded(each, saes, after=True) for each in b]
    every = [_measured(one, text, how, saes) for one, text in zip(active_a, a, strict=True)]
    every += [_measured(one, text, how, saes) for one, text in zip(active_b, b, strict=True)]
    values = np.stack(every)
    lit = np.flatnonzero(values.any(axis=0))
    values_a, values_b = values[: len(a), lit], values[len(a) :, lit]
    effect, test = _judged(values_a, values_b, pairs, alpha, seed)
    change = values_b.mean(axis=0) - values_a.mean(axis=0)
    order = np.argsort(-np.abs(change if effect is None else effect), kind="stable")[:top]
    shown = [_feature(saes, int(lit[i])) for i in order]
    at_a = tuple(_columns(one, shown, text) for one, text in zip(active_a, a, strict=True))
    at_b = tuple(_columns(one, shown, text) for one, text in zip(active_b, b, strict=True))
    differences = tuple(
        Difference(
            shown[place],
            float(values_a[:, i].mean()),
            float(values_b[:, i].mean()),
            None if effect is None else float(effect[i]),
            None if test is None else float(test.p[i]),
            _spike(at_a, a, place),
            _spike(at_b, b, place),
        )
        for place, i in enumerate(order)
    )
    return Comparison(
        names,
        tuple(a),
        tuple(b),
        how,
        pairs,
        pairs and all(x.tokens == y.tokens for x, y in zip(a, b, strict=True)),
        differences,
        at_a,
        at_b,
        len(lit),
        None if test is None else int((test.p <= alpha).sum()),
        test,
        alpha,
        next(n for n in range(2, 64) if least_p(n, n, paired=pairs) <= alpha or n == 63),
    )


def _belong(a: Sequence[Reading], b: Sequence[Reading]) -> bool:
    def same(x: Reading, y: Reading) -> bool:
        if x.tokens == y.tokens:
            return True
        n = x.n_prompt
        return bool(n) and n == y.n_prompt and x.tokens[:n] == y.tokens[:n]

    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def _judged(
    a: Floats, b: Floats, paired: bool, alpha: float, seed: int
) -> tuple[Floats | None, Permutations | None]:
    if len(a) < 2 or len(b) < 2:
        return None, None
    effect = effects(a, b, paired=paired)
    if least_p(len(a), len(b), paired=paired) > alpha:
        return effect, None
    return effect, permuted(a, b, paired=paired, seed=seed)


def counted(reading: Reading) -> slice:
    """The tokens that count: not the first of a text, unless it is the only one."""
    # An answer taken by itself (`Reading.answer`) does not begin with the text's first token.
    return slice(0, None) if reading.n_prompt == 0 else settled(len(reading.tokens))


def pooled(values: F32Array, reading: Reading, at: Pool) -> F32Array:
    """One number for each column of (n_tokens, n_features)."""
    if at is Pool.LAST:
        return np.asarray(values[-1])
    here = values[counted(reading)]
    return np.asarray(here.mean(axis=0) if at is Pool.MEAN else here.max(axis=0))


def _measured(active: Mapping[int, Active], reading: Reading, at: Pool, saes: SaeLayers) -> Floats:
    """One number for each latent of every layer, layers in their order."""
    out = []
    for layer in saes.layers:
        one = active[layer]
        first = one.n_tokens - 1 if at is Pool.LAST else counted(reading).start
        begin = int(one.indptr[first])
        ids, values = one.ids[begin:], np.maximum(one.values[begin:], 0).astype(np.float64)
        column = np.zeros(one.d_sae)
        if at is Pool.MEAN:
            np.add.at(column, ids, values / (one.n_tokens - first))
        else:
            np.maximum.at(column, ids, values)
        out.append(column)
    return np.concatenate(out)


def _feature(saes: SaeLayers, place: int) -> FeatureRef:
    for sae in saes:
        if place < sae.d_sae:
            return feature(saes, sae.layer, place)
        place -= sae.d_sae
    raise AssertionError("a place beyond the last layer")


def _columns(
    active: Mapping[int, Active], features: Sequence[FeatureRef], reading: Reading
) -> F32Array:
    return np.maximum(columns(active, features, len(reading.tokens)), 0)


def _spike(activations: Sequence[F32Array], texts: Sequence[Reading], place: int) -> Spike:
    best = Spike(0, 0, 0.0)
    for number, (values, text) in enumerate(zip(activations, texts, strict=True)):
        first = counted(text).start
        here = values[first:, place]
        at = int(here.argmax())
        if here[at] > best.activation:
            best = Spike(number, first + at, float(here[at]))
    return best
