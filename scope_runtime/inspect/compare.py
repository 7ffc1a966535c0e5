"""Which features differ between two texts, two sets of texts, two models, or with and without a policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.differences import Floats, Permutations, effects, least_p, permuted
from scope_runtime.inspect.features import FeatureRef, feature
from scope_runtime.inspect.kept import Joined, Kept
from scope_runtime.inspect.reading import Reading
from scope_runtime.inspect.sample import Pool, Sample
from scope_runtime.inspect.trace import encoded, settled
from scope_runtime.pack_types import F32Array
from scope_runtime.sae import SaeLayers


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


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """Texts that were read and encoded, residuals as a policy left them; these are not held.

    Attributes:
        readings: without residuals.
        kept: their active latents, tokens counted over all texts.
    """

    readings: tuple[Reading, ...]
    kept: Kept = field(repr=False)

    @property
    def n_tokens(self) -> int:
        """Of all texts."""
        return sum(len(each.tokens) for each in self.readings)


def gathered(readings: Iterable[Reading], saes: SaeLayers) -> Gathered:
    """Encodes texts one by one as they are read, and lets go of their residuals.

    Raises:
        UsageError: a text was not read at every layer.
        PackError: a layer cannot be used as a whole.
    """
    kept, bare, n_tokens = Kept(), list[Reading](), 0
    for reading in readings:
        for layer, active in encoded(reading, saes, after=True).items():
            kept.add(layer, n_tokens, active)
        n_tokens += len(reading.tokens)
        bare.append(replace(reading, layers={}, after={}))
    return Gathered(tuple(bare), kept)


def compare(
    a: Iterable[Reading] | Gathered,
    b: Iterable[Reading] | Gathered,
    saes: SaeLayers,
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool | None = None,
    answers: bool = False,
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
        answers: of each text its answer alone is compared.
        at: how a text's tokens become one number.
        alpha: the chance of naming any feature as different while nothing differs, 0 to 1.
        top: how many features to list.
        seed: of the test's draws.

    Raises:
        UsageError: a sample is empty, pairs do not go up, or a number is out of range.
        PackError: a layer cannot be used as a whole.
    """
    one, two = (each if isinstance(each, Gathered) else gathered(each, saes) for each in (a, b))
    whole = (*one.readings, *two.readings)
    n = len(one.readings)
    if not 0 < n < len(whole):
        raise UsageError("there is nothing to compare", found=f"{n} and {len(whole) - n} texts")
    if top < 1 or not 0 < alpha < 1:
        raise UsageError(
            "top or alpha is out of range",
            found=f"top {top}, alpha {alpha:g}",
            expected="1 or more, 0 to 1",
        )
    texts = tuple(each.answer() if answers else each for each in whole)
    pairs = _belong(texts[:n], texts[n:]) if paired is None else paired
    if pairs and len(texts) != 2 * n:
        raise UsageError("texts do not pair up", found=f"{n} and {len(texts) - n}")
    how = Pool(at)
    read = _sample(whole, texts, Joined(one.kept, two.kept, one.n_tokens), n)
    found = read.pooled(how, fewest=1)
    values = found.values.astype(np.float64)
    effect, test = _judged(values[:n], values[n:], pairs, alpha, seed)
    means = values[:n].mean(axis=0), values[n:].mean(axis=0)
    change = means[1] - means[0]
    order = np.argsort(-np.abs(change if effect is None else effect), kind="stable")[:top]
    places = [(int(found.layers[i]), int(found.ids[i])) for i in order]
    every = read.activations(places)
    columns = tuple(
        every[end - len(text.tokens) : end]
        for text, end in zip(texts, read.starts[1:].tolist(), strict=True)
    )
    differences = tuple(
        Difference(
            feature(saes, *places[place]),
            float(means[0][i]),
            float(means[1][i]),
            None if effect is None else float(effect[i]),
            None if test is None else float(test.p[i]),
            _spike(columns[:n], texts[:n], place),
            _spike(columns[n:], texts[n:], place),
        )
        for place, i in enumerate(order)
    )
    return Comparison(
        names,
        texts[:n],
        texts[n:],
        how,
        pairs,
        pairs and all(x.tokens == y.tokens for x, y in zip(texts[:n], texts[n:], strict=True)),
        differences,
        columns[:n],
        columns[n:],
        len(found.ids),
        None if test is None else int((test.p <= alpha).sum()),
        test,
        alpha,
        next(k for k in range(2, 64) if least_p(k, k, paired=pairs) <= alpha or k == 63),
    )


def _sample(
    whole: Sequence[Reading], texts: Sequence[Reading], kept: Joined, n_first: int
) -> Sample:
    """As `sample` makes it.

    Args:
        whole: texts as they were read.
        texts: of each what is compared, which is the end of it.
        kept: of both.
        n_first: how many of them are a's.
    """
    lengths = [len(each.tokens) for each in whole]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    begins = [
        int(end) - len(text.tokens) + counted(text).start
        for text, end in zip(texts, starts[1:], strict=True)
    ]
    tokens = np.concatenate([np.array(each.tokens, np.int32) for each in whole])
    return Sample(tokens, starts, np.array(begins), np.arange(len(whole)) >= n_first, kept)


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


def _spike(activations: Sequence[F32Array], texts: Sequence[Reading], place: int) -> Spike:
    best = Spike(0, 0, 0.0)
    for number, (values, text) in enumerate(zip(activations, texts, strict=True)):
        first = counted(text).start
        here = values[first:, place]
        at = int(here.argmax())
        if here[at] > best.activation:
            best = Spike(number, first + at, float(here[at]))
    return best
