"""What was found as JSON-ready data, and as one sentence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scope_runtime.inspect.found import Found, FoundFeature
from scope_runtime.inspect.rank import fewest
from scope_runtime.pack_types import layer_name


def found_data(found: Found) -> dict[str, Any]:
    """What ``scope find --json`` prints."""
    ranking, criteria = found.ranking, found.ranking.criteria
    return {
        "verdict": verdict(found),
        "significant": len(ranking.significant),
        "at": str(found.at),
        "texts": {"positive": found.n_positive, "negative": found.n_negative, "own": found.own},
        "held_out": ranking.held_out,
        "halves": list(ranking.halves),
        "layers": [layer_name(layer) for layer in found.layers],
        "latents": found.n_latents,
        "looked_at": ranking.n_features,
        "false_alarm_rate": criteria.false_alarm_rate,
        "seed": criteria.seed,
        "groups": [[_feature(found, each) for each in group] for group in found.groups],
        "notes": list(found.notes),
    }


def _feature(found: Found, feature: FoundFeature) -> dict[str, Any]:
    rank = feature.rank
    return {
        "feature": feature.name,
        "layer": layer_name(rank.layer),
        "id": rank.id,
        "label": feature.label,
        "auroc": _rounded(rank.auroc),
        "effect": _rounded(rank.effect),
        "push": None if rank.push is None else _rounded(rank.push),
        "p": rank.p,
        "significant": found.is_significant(feature),
        "fires": {"positive": _rounded(rank.fires[0]), "negative": _rounded(rank.fires[1])},
        "means": {"positive": _rounded(rank.means[0]), "negative": _rounded(rank.means[1])},
        "chosen_by": rank.chosen_by,
        "peak": _rounded(feature.peak),
        "threshold": _rounded(feature.threshold),
        "favours": [asdict(each) for each in feature.favours],
        "disfavours": [asdict(each) for each in feature.disfavours],
        "contexts": [asdict(each) for each in feature.contexts],
    }


def verdict(found: Found) -> str:
    """What it comes to, in one sentence."""
    ranking = found.ranking
    n, rate = len(ranking.significant), f"{ranking.criteria.false_alarm_rate:.3g}"
    if not ranking.held_out:
        needed = fewest(found.n_negative, ranking.criteria)
        more = f" ({needed} would do against these {found.n_negative})" if needed else ""
        return (
            f"exploratory: too few texts to hold a half out{more}; the ranking is on the texts that "
            "chose it, and nothing is called significant"
        )
    if not n:
        return f"nothing is significant (false-alarm rate {rate})"
    return (
        f"{n} of {len(ranking.features)} candidates are significant: where the two kinds of text "
        f"differ by chance alone, a share of {rate} of such searches calls any feature so"
    )


def _rounded(value: float) -> float | None:
    """Six digits; None where it is infinite, which JSON does not know."""
    return float(f"{value:.6g}") if abs(value) != float("inf") else None
