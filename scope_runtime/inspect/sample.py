"""Texts of two kinds, read by a model and encoded once: what every ranking starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import UsageError
from scope_runtime.pack_types import F32Array, I64Array
from scope_runtime.sae.active import Active
from scope_runtime.types import StrEnum

FEWEST_TEXTS = 3
"""A feature that is active in fewer texts than this, of either kind, is not looked at."""


class Pool(StrEnum):
    """How a text's tokens become one number a feature.

    ``max``: anywhere in the text. ``mean``: over all its tokens. ``last``: at its last token, where the
    model is about to write what comes next. The first token of a text is left out of ``max`` and
    ``mean``: models park there what belongs to no token.
    """

    MAX = "max"
    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """One number for each text and each feature that is active in `FEWEST_TEXTS` texts or more.

    Attributes:
        layers: of the features, (n_features,).
        ids: (n_features,).
        values: 0 where not active, (n_texts, n_features).
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
        positive: which texts are of the wanted kind, (n_texts,).
        active: per layer, over all tokens.
    """

    tokens: npt.NDArray[np.int32] = field(repr=False)
    starts: I64Array = field(repr=False)
    positive: npt.NDArray[np.bool_]
    active: Mapping[int, Active] = field(repr=False)

    @property
    def n_texts(self) -> int:
        """Number of texts, of both kinds."""
        return len(self.starts) - 1

    @property
    def text_of_token(self) -> I64Array:
        """Which text each token belongs to, (n_tokens,)."""
        return np.repeat(np.arange(self.n_texts), np.diff(self.starts))

    def activations(self, features: Sequence[tuple[int, int]]) -> F32Array:
        """What chosen features, as pairs of layer and id, do at every token, (n_tokens, n_features)."""
        out = np.zeros((len(self.tokens), len(features)), np.float32)
        for layer in {layer for layer, _ in features}:
            columns = [i for i, feature in enumerate(features) if feature[0] == layer]
            out[:, columns] = self.active[layer].of(features[i][1] for i in columns)
        return np.maximum(out, 0)

    def pooled(self, at: Pool = Pool.MAX) -> Pooled:
        """One number for each text and feature."""
        text, lengths = self.text_of_token, np.diff(self.starts)
        counts = np.ones(len(self.tokens), np.bool_)
        if at is Pool.LAST:
            counts[:] = False
            counts[self.starts[1:] - 1] = True
        else:
            counts[self.starts[:-1][lengths > 1]] = False
        parts = []
        for layer, active in sorted(self.active.items()):
            token = np.repeat(np.arange(active.n_tokens), np.diff(active.indptr))
            kept = counts[token] & (active.values > 0)
            ids, column = np.unique(active.ids[kept], return_inverse=True)
            values = np.zeros((self.n_texts, len(ids)), np.float32)
            into = np.add if at is Pool.MEAN else np.maximum
            into.at(values, (text[token[kept]], column), active.values[kept])
            if at is Pool.MEAN:
                values /= np.maximum(lengths - (lengths > 1), 1)[:, None].astype(np.float32)
            often = (values > 0).sum(axis=0) >= FEWEST_TEXTS
            parts.append((np.full(int(often.sum()), layer), ids[often], values[:, often]))
        return Pooled(
            np.concatenate([part[0] for part in parts]).astype(np.int64),
            np.concatenate([part[1] for part in parts]).astype(np.int64),
            np.concatenate([part[2] for part in parts], axis=1),
            sum(active.d_sae for active in self.active.values()),
        )


def sample(
    texts: Sequence[tuple[Sequence[int], Mapping[int, Active]]],
    positive: Sequence[bool],
) -> Sample:
    """Texts, each as its tokens and what `FullLayer.encode` found per layer, as one sample.

    Raises:
        UsageError: one of the kinds has no text.
    """
    if not any(positive) or all(positive):
        raise UsageError(
            "texts of two kinds are needed",
            found=f"{sum(positive)} positive, {len(positive) - sum(positive)} negative",
        )
    layers = sorted(texts[0][1])
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in texts)], dtype=np.int64)
    active = {}
    for layer in layers:
        each = [found[layer] for _, found in texts]
        active[layer] = Active.concatenated(each, each[0].d_sae)
    tokens = np.concatenate([np.asarray(tokens, np.int32) for tokens, _ in texts])
    return Sample(tokens, starts, np.array(positive, np.bool_), active)
