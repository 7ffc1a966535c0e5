"""What sliders say, as the text of a policy: all that the page knows of the format is here."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from scope_runtime.pack_types import layer_name
from scope_runtime.policy.model import EMBEDDING

MAX_RULES = 64
MAX_NAME_CHARS = 40
_NAME = Annotated[str, Field(min_length=1, max_length=200)]


class Body(BaseModel):
    """What a route takes: no more than it says."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PackFeatureDraft(Body):
    """One feature of a pack; ``pack`` as policies name it, ``label`` for people."""

    label: Annotated[str, Field(max_length=1000)] = ""
    pack: _NAME
    layer: Annotated[int, Field(ge=EMBEDDING)]
    id: Annotated[int, Field(ge=0)]


class VectorDraft(Body):
    """A control vector."""

    vector: _NAME


class RuleDraft(Body):
    """One slider. Which of the numbers count, ``op`` says."""

    op: Literal["mute", "scale", "clamp", "amplify"]
    feature: PackFeatureDraft | VectorDraft
    alpha: float = 0.0
    factor: float = 1.0
    max: float | None = None
    min: float | None = None


class Draft(Body):
    """A policy in the making.

    Attributes:
        phase: in which its rules act; None: in both.
        dose_max: its dose limit, beyond which the change is cut; None: none.
    """

    name: str
    description: str = ""
    owner: str = ""
    generation: int | None = None
    mode: Literal["enforce", "audit"] = "enforce"
    phase: Literal["prompt", "generation"] | None = "generation"
    dose_max: float | None = 0.7
    rules: Annotated[list[RuleDraft], Field(max_length=MAX_RULES)]


def text_of(draft: Draft) -> str:
    """The policy's text; whether it is one, the loader says."""
    features: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    for each in draft.rules:
        stem, said = _feature(each.feature)
        known = next((name for name, value in features.items() if value == said), None)
        name = known or _free(stem, features)
        features[name] = said
        rule: dict[str, Any] = {each.op: name, **_numbers(each)}
        if draft.phase is not None:
            rule["when"] = {"phase": draft.phase}
        rules[_free(f"{each.op}-{name}", rules)] = rule
    metadata: dict[str, Any] = {"name": draft.name}
    for key in ("owner", "generation", "description"):
        if getattr(draft, key) not in (None, ""):
            metadata[key] = getattr(draft, key)
    limits = {} if draft.dose_max is None else {"limits": _flow({"dose": _dose(draft.dose_max)})}
    tree = {
        "apiVersion": "scope/v1",
        "kind": "SteeringPolicy",
        "metadata": metadata,
        "spec": {
            "mode": draft.mode,
            "features": {name: _flow(said) for name, said in features.items()},
            **limits,
            "rules": [_flow({"name": name, **rule}) for name, rule in rules.items()],
        },
    }
    writer = YAML()
    writer.width = 120
    writer.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    writer.dump(tree, out)
    return out.getvalue()


def _dose(most: float) -> dict[str, Any]:
    return {"max": most, "on_excess": "clamp"}


def _numbers(rule: RuleDraft) -> dict[str, Any]:
    if rule.op == "amplify":
        return {"alpha": rule.alpha, "unit": "residual"}
    if rule.op == "scale":
        return {"factor": rule.factor}
    if rule.op == "clamp":
        return {key: getattr(rule, key) for key in ("min", "max") if getattr(rule, key) is not None}
    return {}


def _feature(feature: PackFeatureDraft | VectorDraft) -> tuple[str, dict[str, Any]]:
    """A name for it, and how a policy says it."""
    if isinstance(feature, VectorDraft):
        stem = feature.vector.rpartition("/")[2].rpartition(".")[0]
        return _plain(stem) or "vector", {"vector": feature.vector}
    layer = layer_name(feature.layer)
    said = {
        "pack": feature.pack,
        "layer": layer if feature.layer == EMBEDDING else feature.layer,
        "id": feature.id,
    }
    return _plain(feature.label) or f"f{layer}-{feature.id}", said


def _plain(text: str) -> str:
    """As names are: small letters, digits and hyphens; empty where nothing is left, or too much."""
    words = re.findall("[a-z0-9]+", text.lower())
    name = "-".join(words)
    return name if len(name) <= MAX_NAME_CHARS and name[:1].isalpha() else ""


def _flow(mapping: Mapping[str, Any]) -> CommentedMap:
    """On one line, as people write it."""
    made = CommentedMap(
        {key: _flow(value) if isinstance(value, dict) else value for key, value in mapping.items()}
    )
    made.fa.set_flow_style()
    return made


def _free(name: str, taken: Mapping[str, Any]) -> str:
    several = (f"{name}-{n}" for n in range(2, len(taken) + 3))
    return next(each for each in (name, *several) if each not in taken)
