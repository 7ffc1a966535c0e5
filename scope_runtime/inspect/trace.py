"""What a text lights up: each token's strongest features, chosen features over tokens, and where each was lit first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.features import FeatureRef, chosen, feature
from scope_runtime.inspect.reading import Reading, Said
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.sae import Active, SaeLayers

N_COLUMNS = 8
"""So many features are shown over the tokens where none are chosen."""


@dataclass(frozen=True, slots=True)
class Lit:
    """A feature at a token.

    Attributes:
        position: of the token, from 0.
        said: what the model was about to say after it; empty: not known.
    """

    feature: FeatureRef
    position: int
    activation: float
    said: tuple[Said, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One text's features.

    Attributes:
        reading: the text.
        features: those that are shown over the tokens.
        activations: theirs, 0 where not active, before any change by a policy, (n_tokens, n_features).
        strongest: per token the most active features of all layers.
        first: per feature the first token at which it was above ``above``; None: at none.
        first_answer: likewise from the token on that chooses the first answer token; None as well where no answer
            is known.
        above: what counts as lit.
    """

    reading: Reading
    features: tuple[FeatureRef, ...]
    activations: F32Array = field(repr=False)
    strongest: tuple[tuple[Lit, ...], ...] = field(repr=False)
    first: tuple[Lit | None, ...] = field(repr=False)
    first_answer: tuple[Lit | None, ...] = field(repr=False)
    above: float = 0.0


def encoded(reading: Reading, saes: SaeLayers, *, after: bool = False) -> dict[int, Active]:
    """Every active latent of a reading, per layer; with ``after`` as a policy left it. Raises UsageError."""
    layers = reading.after if after else reading.layers
    lacking = [layer_name(layer) for layer in saes.layers if layer not in layers]
    if lacking:
        raise UsageError(
            f"{reading.name} was not read at every layer of the SAEs",
            found=f"layers {', '.join(map(layer_name, sorted(layers)))}",
            expected=", ".join(lacking),
        )
    return {sae.layer: sae.encode(layers[sae.layer]) for sae in saes}


def trace(
    reading: Reading,
    saes: SaeLayers,
    *,
    features: str | Iterable[str] | None = None,
    top: int = 5,
    above: float = 0.0,
) -> Trace:
    """What a text lights up.

    Args:
        reading: has the SAEs' layers.
        saes: whole layers.
        features: to show over the tokens, as `chosen` reads them; else the strongest of the text.
        top: how many features to list with each token.
        above: from which activation on a feature counts as lit.

    Raises:
        UsageError: there is no such feature, a layer was not read, or ``top`` or ``above`` is negative.
        PackError: a layer cannot be used as a whole.
    """
    if top < 0 or not above >= 0:
        raise UsageError(
            "top and above are not negative",
            found=f"top {top}, above {above:g}",
            expected="0 or more",
        )
    active = encoded(reading, saes)
    shown = chosen(saes, features) if features is not None else _strongest(active, saes)
    values = columns(active, shown, len(reading.tokens))
    start = answer_from(reading)
    return Trace(
        reading,
        shown,
        values,
        tuple(_listed(active, saes, t, top) for t in range(len(reading.tokens))),
        tuple(_first(reading, each, values[:, i], above, 0) for i, each in enumerate(shown)),
        tuple(
            None if start is None else _first(reading, each, values[:, i], above, start)
            for i, each in enumerate(shown)
        ),
        above,
    )


def columns(
    active: Mapping[int, Active], features: Iterable[FeatureRef], n_tokens: int
) -> F32Array:
    """Activations of features of several layers, (n_tokens, n_features)."""
    features = tuple(features)
    out = np.zeros((n_tokens, len(features)), np.float32)
    for layer in {each.layer for each in features}:
        places = [i for i, each in enumerate(features) if each.layer == layer]
        out[:, places] = active[layer].of(features[i].id for i in places)
    return out


def answer_from(reading: Reading) -> int | None:
    """The token whose logits choose the first answer token: there the phase ``generation`` begins."""
    n = reading.n_prompt
    return None if n is None or n >= len(reading.tokens) else max(n - 1, 0)


def settled(n_tokens: int) -> slice:
    """The tokens that say what is strong: models keep numbers of their own, huge ones, at the first token."""
    return slice(1 if n_tokens > 1 else 0, None)


def _strongest(active: Mapping[int, Active], saes: SaeLayers) -> tuple[FeatureRef, ...]:
    """The features with the largest activation at any token but the first, the largest first."""
    found: list[tuple[float, int, int]] = []
    for layer, one in active.items():
        here = settled(one.n_tokens)
        begin = int(one.indptr[here.start or 0])
        ids, values = one.ids[begin:], one.values[begin:]
        best = np.full(one.d_sae, -np.inf, np.float32)
        np.maximum.at(best, ids, values)
        for id in np.argsort(-best, kind="stable")[:N_COLUMNS].tolist():
            if best[id] > 0:
                found.append((-float(best[id]), layer, id))
    return tuple(feature(saes, layer, id) for _, layer, id in sorted(found)[:N_COLUMNS])


def _listed(active: Mapping[int, Active], saes: SaeLayers, token: int, top: int) -> tuple[Lit, ...]:
    def each() -> Iterator[tuple[float, int, int]]:
        for layer, one in active.items():
            for id, value in zip(*one.strongest(token, top), strict=True):
                if value > 0:
                    yield -float(value), layer, int(id)

    return tuple(
        Lit(feature(saes, layer, id), token, -value) for value, layer, id in sorted(each())[:top]
    )


def _first(
    reading: Reading, one: FeatureRef, values: F32Array, above: float, start: int
) -> Lit | None:
    lit = np.flatnonzero(values[start:] > above)
    if not len(lit):
        return None
    position = start + int(lit[0])
    said = reading.next[position] if reading.next else ()
    return Lit(one, position, float(values[position]), said)
