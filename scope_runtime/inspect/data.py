"""What was found as JSON-ready data: numbers for programs, under names that stay."""

from __future__ import annotations

from typing import Any

from scope_runtime.inspect.compare import Comparison, Difference, Spike
from scope_runtime.inspect.features import FeatureRef
from scope_runtime.inspect.reading import Reading, Said
from scope_runtime.inspect.trace import Lit, Trace
from scope_runtime.inspect.words import comparison_words, trace_words
from scope_runtime.pack_types import F32Array, layer_name

DIGITS = 6


def trace_data(found: Trace) -> dict[str, Any]:
    """One text: its tokens in order, each with its strongest features; chosen features with a value a token."""
    reading = found.reading
    return {
        **_reading(reading),
        "tokens": [
            {
                "position": position,
                "id": token,
                "text": piece,
                "strongest": [
                    _feature(lit.feature) | {"activation": _number(lit.activation)}
                    for lit in strongest
                ],
                "about_to_say": _said(reading.next[position]) if reading.next else None,
            }
            for position, (token, piece, strongest) in enumerate(
                zip(reading.tokens, reading.pieces, found.strongest, strict=True)
            )
        ],
        "above": found.above,
        "features": [
            _feature(feature)
            | {
                "activations": _numbers(found.activations[:, i]),
                "first": _lit(found.first[i]),
                "first_in_answer": _lit(found.first_answer[i]),
            }
            for i, feature in enumerate(found.features)
        ],
        "words": list(trace_words(found)),
    }


def comparison_data(found: Comparison) -> dict[str, Any]:
    """Both samples: the features that differ, and what may be said of them."""
    test = None
    if found.test is not None:
        test = {
            "name": "Westfall-Young single-step max-T permutation test over texts, two-sided",
            "alpha": found.alpha,
            "arrangements": found.test.n_arrangements,
            "exact": found.test.exact,
            "significant": found.n_significant,
        }
    return {
        "a": {"name": found.names[0], "texts": [_reading(each) for each in found.a]},
        "b": {"name": found.names[1], "texts": [_reading(each) for each in found.b]},
        "at": str(found.at),
        "paired": found.paired,
        "same_tokens": found.aligned,
        "features_compared": found.n_features,
        "test": test,
        "texts_needed": found.needed,
        "differences": [_difference(each, found) for each in found.differences],
        "words": list(comparison_words(found)),
    }


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "name": reading.name,
        "text": reading.text,
        "n_tokens": len(reading.tokens),
        "n_prompt": reading.n_prompt,
        "policy_revision": reading.policy,
    }


def _difference(each: Difference, found: Comparison) -> dict[str, Any]:
    return _feature(each.feature) | {
        "a": _number(each.a),
        "b": _number(each.b),
        "effect": None if each.effect is None else _number(each.effect),
        "p": each.p,
        "largest_a": _spike(each.spike_a, found.a),
        "largest_b": _spike(each.spike_b, found.b),
    }


def _spike(spike: Spike, texts: tuple[Reading, ...]) -> dict[str, Any] | None:
    if spike.activation <= 0:
        return None
    return {
        "text": spike.text,
        "position": spike.position,
        "token": texts[spike.text].pieces[spike.position],
        "activation": _number(spike.activation),
    }


def _feature(feature: FeatureRef) -> dict[str, Any]:
    return {
        "layer": layer_name(feature.layer) if feature.layer < 0 else feature.layer,
        "id": feature.id,
        "label": feature.label or None,
    }


def _lit(lit: Lit | None) -> dict[str, Any] | None:
    if lit is None:
        return None
    return {
        "position": lit.position,
        "activation": _number(lit.activation),
        "about_to_say": _said(lit.said) if lit.said else None,
    }


def _said(said: tuple[Said, ...]) -> list[dict[str, Any]]:
    return [
        {"id": each.token, "text": each.text, "probability": _number(each.probability)}
        for each in said
    ]


def _number(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _numbers(values: F32Array) -> list[float]:
    return [_number(value) for value in values.tolist()]
