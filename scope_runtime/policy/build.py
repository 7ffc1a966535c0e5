"""The checked tree → the frozen model. What did not pass the schema is left out."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scope_runtime.errors import Location
from scope_runtime.policy.model import (
    EMBEDDING,
    Action,
    AlertSpec,
    Condition,
    Contents,
    DoseLimit,
    Exemption,
    Feature,
    Gate,
    GateKind,
    GroupFeature,
    Keep,
    Mode,
    ModelRequirement,
    OnExcess,
    Op,
    PackFeature,
    Phase,
    Positions,
    PositionsOf,
    Rollout,
    Rule,
    Severity,
    Unit,
    VectorFeature,
    Watch,
    When,
)
from scope_runtime.policy.yaml12 import Document, KeyPath, Mark

Raw = Mapping[str, Any]
Selector = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """What could be built, and the names of what stands in the file but could not.

    Attributes:
        rules, exceptions: each with its path in the document, for messages.
        unusable: names of features that stand in the file but could not be built.
    """

    features: dict[str, Feature]
    rules: tuple[tuple[KeyPath, Rule], ...]
    exceptions: tuple[tuple[KeyPath, Exemption], ...]
    unusable: frozenset[str]
    all_rules: bool


def build_parts(document: Document, bad: Iterable[KeyPath], directory: str) -> Parts:
    """Builds the features, rules and exceptions that lie outside the bad paths.

    Args:
        directory: the policy file's directory relative to the policy's root, "" if the same.
    """
    bad_prefixes = {path[:length] for path in bad for length in (3,) if len(path) >= length}
    whole = {path for path in bad if len(path) < 3}
    spec = document.tree.get("spec") if isinstance(document.tree, dict) else None
    spec = spec if isinstance(spec, dict) else {}

    def usable(section: str, keys: Iterable[str | int]) -> list[KeyPath]:
        if ("spec", section) in whole:
            return []
        paths: list[KeyPath] = [("spec", section, key) for key in keys]
        return [path for path in paths if path not in bad_prefixes]

    features = _mapping(spec.get("features"))
    rules, exceptions = _list(spec.get("rules")), _list(spec.get("exceptions"))
    marks = document.marks
    built = {
        str(path[2]): _feature(str(path[2]), features[str(path[2])], marks[path], directory)
        for path in usable("features", features)
    }
    good_rules = usable("rules", range(len(rules)))
    return Parts(
        features=built,
        rules=tuple((path, _rule(rules[int(path[2])], path, marks)) for path in good_rules),
        exceptions=tuple(
            (path, _exemption(exceptions[int(path[2])], marks[path].value))
            for path in usable("exceptions", range(len(exceptions)))
        ),
        unusable=frozenset(features) - frozenset(built),
        all_rules=len(good_rules) == len(rules),
    )


def _mapping(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _names(raw: Any) -> tuple[str, ...]:
    return (raw,) if isinstance(raw, str) else tuple(raw)


def _number(raw: Any) -> float | None:
    return None if raw is None else float(raw)


def _tokens(raw: str | None, default: int) -> int:
    return default if raw is None else int(raw.split()[0])


def build_selector(raw: Raw | None) -> Selector | None:
    """Labels and their values, sorted by label so that order in the file means nothing."""
    if raw is None:
        return None
    return tuple(sorted((label, _names(values)) for label, values in raw.items()))


def build_model(raw: Raw | None, location: Location | None) -> ModelRequirement | None:
    """``spec.model``."""
    if raw is None:
        return None
    return ModelRequirement(
        raw.get("architecture"), _int(raw.get("layers")), _int(raw.get("width")), location
    )


def build_dose(raw: Raw | None, location: Location | None) -> DoseLimit | None:
    """``spec.limits.dose``."""
    if raw is None or location is None:
        return None
    return DoseLimit(float(raw["max"]), OnExcess(raw.get("on_excess", "clamp")), location)


def build_contents(raw: Raw | None) -> Contents:
    """``spec.audit``."""
    said = {name: Keep(raw[name]) for name in ("prompts", "outputs") if name in raw} if raw else {}
    return Contents(**said)


def _int(raw: Any) -> int | None:
    return None if raw is None else int(raw)


def _layer(raw: Any) -> int:
    return EMBEDDING if raw == "embedding" else int(raw)


def _feature(name: str, raw: Raw, mark: Mark, directory: str) -> Feature:
    where = mark.key or mark.value
    if "group" in raw:
        return GroupFeature(name, tuple(raw["group"]), where)
    if "vector" in raw:
        layers = tuple(int(layer) for layer in raw["layers"]) if "layers" in raw else None
        return VectorFeature(name, _path(raw["vector"], directory), layers, where)
    pack = _path(raw["pack"], directory)
    return PackFeature(
        name, pack, _layer(raw["layer"]), int(raw["id"]), _gate(raw.get("gate")), where
    )


def _path(written: str, directory: str) -> str:
    """The path relative to the policy's root; an absolute one stays, to be refused by name."""
    return posixpath.normpath(posixpath.join(directory, written))


def _gate(raw: Any) -> Gate | None:
    if raw is None:
        return None
    if isinstance(raw, str):
        return Gate(GateKind(raw))
    return Gate(GateKind(raw["kind"]), _number(raw.get("threshold")), _int(raw.get("k")))


def _rule(raw: Raw, path: KeyPath, marks: Mapping[KeyPath, Mark]) -> Rule:
    op = next(op for op in Op if op.value in raw)
    return Rule(
        name=raw["name"],
        op=op,
        targets=_names(raw[op.value]),
        mode=Mode(raw["mode"]) if "mode" in raw else None,
        when=_when(raw.get("when"), path, marks),
        alpha=_number(raw.get("alpha")),
        unit=Unit(raw.get("unit", "absolute")) if op is Op.AMPLIFY else None,
        factor=_number(raw.get("factor")),
        min=_number(raw.get("min")),
        max=_number(raw.get("max")),
        alert=_alert(raw) if op is Op.ALERT else None,
        rollout=_rollout(raw.get("rollout")),
        location=marks[path].value,
    )


def _rollout(raw: Raw | None) -> Rollout | None:
    return None if raw is None else Rollout(float(raw["percent"]), raw["by"])


def _alert(raw: Raw) -> AlertSpec:
    actions = raw.get("actions", ["log", "metric"])
    return AlertSpec(
        above=_number(raw.get("above")),
        below=_number(raw.get("below")),
        for_tokens=_tokens(raw.get("for"), 1),
        keep_firing_for_tokens=_tokens(raw.get("keep_firing_for"), 0),
        watch=Watch(raw.get("watch", "max")),
        severity=Severity(raw.get("severity", "warning")),
        actions=tuple(Action(action) for action in actions if isinstance(action, str)),
        switch_on=tuple(action["switch_on"] for action in actions if isinstance(action, dict)),
    )


def _when(raw: Raw | None, path: KeyPath, marks: Mapping[KeyPath, Mark]) -> When:
    if raw is None:
        return When()
    positions = condition = None
    if "positions" in raw:
        span = raw["positions"]
        of = PositionsOf(span.get("of", "sequence"))
        positions = Positions(_int(span.get("from")), _int(span.get("to")), of)
    if "feature" in raw:
        condition = Condition(
            feature=raw["feature"],
            above=_number(raw.get("above")),
            below=_number(raw.get("below")),
            hysteresis=float(raw.get("hysteresis", 0.0)),
            for_tokens=_tokens(raw.get("for"), 1),
            watch=Watch(raw.get("watch", "max")),
            location=marks[(*path, "when", "feature")].value,
        )
    return When(Phase(raw["phase"]) if "phase" in raw else None, positions, condition)


def _exemption(raw: Raw, where: Location) -> Exemption:
    selector = build_selector(raw["selector"]) or ()
    return Exemption(selector, tuple(raw["rules"]), raw["owner"], raw["until"], where)
