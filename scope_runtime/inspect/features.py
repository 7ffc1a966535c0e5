"""Features by what a person writes: ``20:6159``, ``20:6159,811``, or a label."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scope_runtime.errors import UsageError
from scope_runtime.pack_types import layer_name
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.sae import SaeLayers

_NUMBERED = re.compile(r"(?P<layer>embedding|[0-9]{1,4}):(?P<id>[0-9]{1,9})")
_ID = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, order=True)
class FeatureRef:
    """One feature of the SAEs at hand; ``label`` is empty where it has none."""

    layer: int
    id: int
    label: str = ""

    @property
    def number(self) -> str:
        """``20:6159``."""
        return f"{layer_name(self.layer)}:{self.id}"

    def __str__(self) -> str:
        return f"{self.number} {self.label}" if self.label else self.number


def feature(saes: SaeLayers, layer: int, id: int) -> FeatureRef:
    """A feature with its label. Raises PackError: there is no such layer."""
    return FeatureRef(layer, id, saes.layer(layer).labels.get(id, ""))


def chosen(saes: SaeLayers, wanted: str | Iterable[str]) -> tuple[FeatureRef, ...]:
    """Features by number or label, in the order in which they were written, each once.

    Args:
        wanted: ``LAYER:ID`` or a label, several with commas between; after a number, a number alone is of the same
            layer. Of a set with one layer ids suffice.

    Raises:
        UsageError: there is no such feature, or several have the label.
    """
    words = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    found: dict[FeatureRef, None] = {}
    layer = saes.layers[0] if len(saes.layers) == 1 else None
    for word in map(str.strip, words):
        match = _NUMBERED.fullmatch(word)
        if match:
            layer = EMBEDDING if match["layer"] == "embedding" else int(match["layer"])
            found[_numbered(saes, layer, int(match["id"]))] = None
        elif _ID.fullmatch(word) and layer is not None:
            found[_numbered(saes, layer, int(word))] = None
        else:
            found[_labelled(saes, word)] = None
    return tuple(found)


def _numbered(saes: SaeLayers, layer: int, id: int) -> FeatureRef:
    sae = saes.layer(layer)
    if id >= sae.d_sae:
        raise UsageError(
            f"the SAE of layer {layer_name(layer)} has no such feature",
            found=str(id),
            expected=f"0 to {sae.d_sae - 1}",
        )
    return feature(saes, layer, id)


def _labelled(saes: SaeLayers, label: str) -> FeatureRef:
    every = [FeatureRef(sae.layer, id, name) for sae in saes for id, name in sae.labels.items()]
    found = [each for each in every if each.label == label]
    if len(found) > 1:
        raise UsageError(
            "several features have this label",
            found=repr(label),
            expected="one of " + ", ".join(each.number for each in found[:8]),
        )
    if not found:
        near = difflib.get_close_matches(label, {each.label for each in every}, 3)
        raise UsageError(
            "no such feature",
            found=repr(label),
            expected="LAYER:ID, such as 20:6159" + (", or a label" if every else ""),
            hint=f"Did you mean {' or '.join(near)}?" if near else None,
        )
    return found[0]


def names(features: Sequence[FeatureRef]) -> list[str]:
    """As text."""
    return [str(each) for each in features]
