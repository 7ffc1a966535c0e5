"""Texts of two kinds, read by a model and encoded once: what every ranking starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import UsageError
from scope_runtime.inspect.ahead import Ahead
from scope_runtime.inspect.kept import Joined, Kept, roomy
from scope_runtime.pack_types import F32Array, I64Array
from scope_runtime.sae.active import Active
from scope_runtime.types import StrEnum

FEWEST_TEXTS = 3
"""A feature that is active in fewer texts than this, of either kind, is not looked at."""


class Pool(StrEnum):
    """How a text's tokens become one number a feature.

    ``max``: anywhere in the text. ``mean``: over all its tokens. ``last``: at its last token, where the
    model is about to write what comes next. The first token of a text is left out of ``max`` and
    ``mean``: models park there what belongs to no token. Where the model answered, the answer alone counts.
    """

    MAX = "max"
    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """One number for each text and each feature that is active in texts enough, by default `FEWEST_TEXTS`.

    Attributes:
        layers: of the features, (n_features,).
        ids: (n_features,).
        values: 0 where not active, (n_texts, n_features); of many features it lies in a file.
        n_latents: how many latents the layers have, active or not.
    """

    layers: I64Array
    ids: I64Array
    values: F32Array = field(repr=False)
    n_latents: int


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Texts of two kinds with every token's active latents.

    Attributes:
        tokens: of all texts, one after the other.
        starts: text t is ``tokens[starts[t]:starts[t + 1]]``, (n_texts + 1,).
        begins: the first token of each text that counts, as a number over all, (n_texts,).
        positive: which texts are of the wanted kind, (n_texts,).
        kept: per layer, over all tokens.
        ahead: what comes next where each text ends; None: that was not looked at.
    """

    tokens: npt.NDArray[np.int32] = field(repr=False)
    starts: I64Array = field(repr=False)
    begins: I64Array = field(repr=False)
    positive: npt.NDArray[np.bool_]
    kept: Kept | Joined = field(repr=False)
    ahead: Ahead | None = field(default=None, repr=False)

    @property
    def n_texts(self) -> int:
        """Number of texts, of both kinds."""
        return len(self.starts) - 1

    def activations(self, features: Sequence[tuple[int, int]]) -> F32Array:
        """What chosen features, as pairs of layer and id, do at every token, (n_tokens, n_features)."""
        out = np.zeros((len(self.tokens), len(features)), np.float32)
        for layer in {layer for layer, _ in features}:
            columns = [i for i, feature in enumerate(features) if feature[0] == layer]
            for first, active in self.kept.pieces(layer):
                here = active.of(features[i][1] for i in columns)
                out[first : first + len(here), columns] = here
        return np.maximum(out, 0)

    def pooled(self, at: Pool = Pool.MAX, *, fewest: int = FEWEST_TEXTS) -> Pooled:
        """One number for each text, and each feature that is active in ``fewest`` texts or more."""
        sizes = self.kept.d_sae
        often = {layer: self._often(layer, at, fewest) for layer in sizes}
        ids = np.concatenate(list(often.values()))
        # Features first, as they are read: some of them for all texts.
        values = roomy((len(ids), self.n_texts))
        row = 0
        for layer, wanted in often.items():
            for text, column in self._columns(layer, at):
                values[row : row + len(wanted), text] = column[wanted]
            row += len(wanted)
        layers = np.repeat(np.array(list(often), np.int64), [*map(len, often.values())])
        return Pooled(layers, ids, values.T, sum(sizes.values()))

    def _often(self, layer: int, at: Pool, fewest: int) -> I64Array:
        """Ids of the latents that are active in enough texts."""
        counts = np.zeros(self.kept.d_sae[layer], np.int64)
        for _, column in self._columns(layer, at):
            counts += column > 0
        return np.flatnonzero(counts >= fewest)

    def _columns(self, layer: int, at: Pool) -> Iterator[tuple[int, F32Array]]:
        """Each text's number, and one number for each latent, (d_sae,)."""
        column, text = np.zeros(self.kept.d_sae[layer]), 0
        for first, active in self.kept.pieces(layer):
            if first == self.starts[text + 1]:
                yield text, self._done(column, text, at)
                column, text = np.zeros_like(column), text + 1
            begin, end = self._counted(text, at)
            rows = np.clip([begin - first, end - first], 0, active.n_tokens)
            low, high = active.indptr[rows].tolist()
            into = np.add if at is Pool.MEAN else np.maximum
            into.at(column, active.ids[low:high], np.maximum(active.values[low:high], 0))
        yield text, self._done(column, text, at)

    def _counted(self, text: int, at: Pool) -> tuple[int, int]:
        """The tokens of a text that count, as numbers over all texts."""
        after = int(self.starts[text + 1])
        return after - 1 if at is Pool.LAST else int(self.begins[text]), after

    def _done(self, column: npt.NDArray[np.float64], text: int, at: Pool) -> F32Array:
        begin, end = self._counted(text, at)
        return (column / (end - begin if at is Pool.MEAN else 1)).astype(np.float32)


Part = tuple[Sequence[int], Mapping[int, Active]]
"""Some tokens of a text, and what `FullLayer.encode` found in them per layer."""


def sample(
    texts: Iterable[Iterable[Part]],
    positive: Sequence[bool],
    begins: Sequence[int] | None = None,
) -> Sample:
    """Texts as one sample. A text comes in parts, and no part is held for longer than it takes to keep it.

    Args:
        texts: each of one token or more.
        positive: for each of them whether it is of the wanted kind.
        begins: of each the first token that counts; by default the second, or the only one.

    Raises:
        UsageError: one of the kinds has no text.
    """
    if not any(positive) or all(positive):
        raise UsageError(
            "texts of two kinds are needed",
            found=f"{sum(positive)} positive, {len(positive) - sum(positive)} negative",
        )
    kept, tokens, starts = Kept(), list[int](), [0]
    for text in texts:
        for said, found in text:
            for layer, active in found.items():
                kept.add(layer, len(tokens), active)
            tokens += said
        starts.append(len(tokens))
    bounds = np.array(starts)
    first = np.minimum(1, np.diff(bounds) - 1) if begins is None else np.array(begins)
    kinds = np.array(positive, np.bool_)
    return Sample(np.array(tokens, np.int32), bounds, bounds[:-1] + first, kinds, kept)
