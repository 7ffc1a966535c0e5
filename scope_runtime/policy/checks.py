"""What the schema cannot say: that names name something, and that a rule can do what it asks."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from scope_runtime.errors import Location, PolicyError
from scope_runtime.policy.build import Parts
from scope_runtime.policy.model import (
    EMBEDDING,
    Condition,
    Exemption,
    GroupFeature,
    Op,
    PackFeature,
    Rule,
    Unit,
    VectorFeature,
)
from scope_runtime.policy.words import did_you_mean, listed
from scope_runtime.policy.yaml12 import Document, KeyPath, key_text

_TAKES_VECTORS = (Op.AMPLIFY, Op.ABLATE)


def semantic_errors(document: Document, parts: Parts) -> Iterator[PolicyError]:
    """Checks what could be built; a name that stands in the file but is broken is known all the same."""
    checker = _Checker(document, parts)
    yield from checker.groups()
    for path, rule in parts.rules:
        yield from checker.rule(path, rule)
    yield from checker.rule_names()
    yield from checker.switched_twice()
    yield from checker.switch_cycles()
    for path, exemption in parts.exceptions:
        yield from checker.exemption(path, exemption)


class _Checker:
    def __init__(self, document: Document, parts: Parts) -> None:
        self._document = document
        self._parts = parts
        self._known = sorted({*parts.features, *parts.unusable})
        self._rules = {rule.name: rule for _, rule in parts.rules}

    def groups(self) -> Iterator[PolicyError]:
        for feature in self._parts.features.values():
            if not isinstance(feature, GroupFeature):
                continue
            for index, member in enumerate(feature.members):
                path = ("spec", "features", feature.name, "group", index)
                if (unknown := self._unknown_feature(path, member)) is not None:
                    yield unknown
                    continue
                target = self._parts.features.get(member)
                if isinstance(target, GroupFeature):
                    yield self._error(
                        path,
                        "a group inside a group",
                        f'the group "{member}"',
                        "a feature of a pack",
                    )
                elif isinstance(target, VectorFeature):
                    yield self._error(
                        path,
                        "a control vector inside a group",
                        f'the vector "{member}"',
                        "a feature of a pack",
                    )

    def rule(self, path: KeyPath, rule: Rule) -> Iterator[PolicyError]:
        many = isinstance(self._value((*path, rule.op.value)), list)
        for index, target in enumerate(rule.targets):
            at = (*path, rule.op.value, index) if many else (*path, rule.op.value)
            if (unknown := self._unknown_feature(at, target)) is not None:
                yield unknown
            elif isinstance(self._parts.features.get(target), VectorFeature):
                if rule.op not in _TAKES_VECTORS:
                    yield self._error(
                        at,
                        f'"{rule.op}" needs an activation, which a control vector has not',
                        f'the vector "{target}"',
                        "a feature of a pack or a group of them",
                    )
                elif rule.unit is Unit.MAX:
                    yield self._error(
                        at,
                        "unit max needs a recorded maximum, which a control vector has not",
                        f'the vector "{target}"',
                        "a feature of a pack, or another unit",
                    )
        if rule.min is not None and rule.max is not None and rule.min > rule.max:
            yield self._error(
                (*path, "min"),
                "min is above max",
                f"min {rule.min:g} and max {rule.max:g}",
                "min ≤ max",
            )
        span = rule.when.positions
        if span and span.first is not None and span.last is not None and span.first > span.last:
            yield self._error(
                (*path, "when", "positions", "from"),
                "from is after to",
                f"from {span.first} to {span.last}",
                "from ≤ to",
            )
        if rule.when.condition:
            yield from self._condition((*path, "when", "feature"), rule, rule.when.condition)
        yield from self._switches(path, rule)

    def _condition(self, path: KeyPath, rule: Rule, condition: Condition) -> Iterator[PolicyError]:
        name = condition.feature
        if (unknown := self._unknown_feature(path, name)) is not None:
            yield unknown
            return
        if isinstance(self._parts.features.get(name), VectorFeature):
            yield self._error(
                path,
                "a condition needs an activation, which a control vector has not",
                f'the vector "{name}"',
                "a feature of a pack or a group of them",
            )
            return
        watched, acting = self._layers((name,)), self._layers(rule.targets)
        # An alert is judged at its deepest layer; an intervention needs its condition at each.
        limit = max(acting, default=None) if rule.op is Op.ALERT else min(acting, default=None)
        if watched and limit is not None and max(watched) > limit:
            yield self._error(
                path,
                "the condition is known only after the rule's layer",
                f'"{name}" at {_layer(max(watched))}, the rule at {_layer(limit)}',
                "a feature of the same layer or an earlier one",
            )

    def _layers(self, names: Sequence[str]) -> list[int]:
        """The layers of the named features, as far as the policy alone tells them."""
        layers: list[int] = []
        for name in names:
            feature = self._parts.features.get(name)
            if isinstance(feature, PackFeature):
                layers.append(feature.layer)
            elif isinstance(feature, VectorFeature):
                layers += feature.layers or ()
            elif isinstance(feature, GroupFeature):
                layers += self._layers([member for member in feature.members if member != name])
        return layers

    def _switches(self, path: KeyPath, rule: Rule) -> Iterator[PolicyError]:
        for at, target in self._switch_targets(path, rule):
            if target == rule.name:
                yield self._error(
                    at, "an alert cannot switch itself on", f'"{target}"', "another rule"
                )
            else:
                yield from self._unknown_rule(at, target)

    def _switch_targets(self, path: KeyPath, rule: Rule) -> Iterator[tuple[KeyPath, str]]:
        """The rules that an alert switches on, and where it says so."""
        if rule.alert and rule.alert.switch_on:
            for index, action in enumerate(self._value((*path, "actions"))):
                if isinstance(action, dict):
                    yield (*path, "actions", index, "switch_on"), action["switch_on"]

    def rule_names(self) -> Iterator[PolicyError]:
        first: dict[str, Location] = {}
        for path, rule in self._parts.rules:
            at = self._document.marks[(*path, "name")].value
            if rule.name in first:
                yield PolicyError(
                    f'a second rule named "{rule.name}"',
                    location=at,
                    key=key_text((*path, "name")),
                    hint=f"The first stands at {first[rule.name]}.",
                )
            first.setdefault(rule.name, at)

    def switched_twice(self) -> Iterator[PolicyError]:
        """A rule has one switch: with two alerts it would not be said whether either or both count."""
        switched_by: dict[str, str] = {}
        for path, rule in self._parts.rules:
            for at, target in self._switch_targets(path, rule):
                if target in switched_by:
                    yield self._error(
                        at,
                        f'a second alert that switches "{target}" on',
                        f'"{switched_by[target]}" and "{rule.name}"',
                        "one alert, which may watch a group",
                    )
                switched_by.setdefault(target, rule.name)

    def switch_cycles(self) -> Iterator[PolicyError]:
        """A ring of alerts that switch each other on: none of them could ever fire."""
        reported: set[str] = set()
        for path, rule in self._parts.rules:
            ring = self._ring(rule.name)
            if ring and not reported & set(ring):
                reported |= set(ring)
                yield self._error(
                    (*path, "actions"),
                    "alerts that switch each other on can never fire",
                    " → ".join([*ring, ring[0]]),
                    "at least one that is on from the start",
                )

    def _ring(self, start: str) -> list[str]:
        trail: list[list[str]] = [[start]]
        seen: set[str] = set()
        while trail:
            names = trail.pop()
            rule = self._rules.get(names[-1])
            for following in rule.alert.switch_on if rule and rule.alert else ():
                if following == start and len(names) > 1:
                    return names
                if following not in seen and following != names[-1]:
                    seen.add(following)
                    trail.append([*names, following])
        return []

    def exemption(self, path: KeyPath, exemption: Exemption) -> Iterator[PolicyError]:
        for index, name in enumerate(exemption.rules):
            yield from self._unknown_rule((*path, "rules", index), name)
        try:
            datetime.date.fromisoformat(exemption.until)
        except ValueError:
            yield self._error(
                (*path, "until"), "no such day", exemption.until, "a date such as 2027-01-31"
            )

    def _unknown_feature(self, path: KeyPath, name: str) -> PolicyError | None:
        if name in self._known:
            return None
        hint = did_you_mean(name, self._known)
        expected = None
        if not hint:
            expected = (
                listed(self._known) if self._known else "a name in spec.features, which names none"
            )
        return self._error(path, f'unknown feature "{name}"', None, expected, hint)

    def _unknown_rule(self, path: KeyPath, name: str) -> Iterator[PolicyError]:
        # With a rule that could not be read, the name may well be its name.
        if name not in self._rules and self._parts.all_rules:
            names = list(self._rules)
            hint = did_you_mean(name, names)
            expected = None if hint else listed(names)
            yield self._error(path, f'unknown rule "{name}"', None, expected, hint)

    def _value(self, path: KeyPath) -> Any:
        value = self._document.tree
        for part in path:
            value = value.get(part) if isinstance(value, dict) else value[part]
        return value

    def _error(
        self,
        path: KeyPath,
        message: str,
        found: str | None,
        expected: str | None,
        hint: str | None = None,
    ) -> PolicyError:
        where = self._document.marks[path].value
        return PolicyError(
            message, location=where, key=key_text(path), found=found, expected=expected, hint=hint
        )


def _layer(layer: int) -> str:
    return "embedding" if layer == EMBEDDING else f"layer {layer}"
