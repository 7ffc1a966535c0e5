"""What is allowed in a policy and yet seldom meant: warnings, each with its place."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scope_runtime.errors import Location
from scope_runtime.policy.model import (
    Action,
    GroupFeature,
    Mode,
    Op,
    Policy,
    Rule,
)

_REMOVES = (Op.MUTE, Op.SCALE, Op.CLAMP)


@dataclass(frozen=True, slots=True)
class LintWarning:
    """One finding.

    Attributes:
        code: what kind it is, for those who filter.
    """

    code: str
    message: str
    location: Location

    def __str__(self) -> str:
        return f"{self.location}: {self.message} [{self.code}]"

    def fields(self) -> dict[str, object]:
        """The warning as plain data, with the keys that errors have."""
        return {
            "warning": self.code,
            "message": self.message,
            "file": self.location.file,
            "line": self.location.line or None,
            "column": self.location.column or None,
        }


def lint(policy: Policy, today: datetime.date) -> tuple[LintWarning, ...]:
    """The policy's warnings in file order. ``today`` (UTC) tells which exceptions have lapsed."""
    found = [
        *_metadata(policy),
        *_features(policy),
        *(warning for rule in policy.rules for warning in _rule(policy, rule)),
        *_twice(policy),
        *_exceptions(policy, today),
    ]
    return tuple(
        sorted(found, key=lambda warning: (warning.location.line, warning.location.column))
    )


def _metadata(policy: Policy) -> Iterator[LintWarning]:
    whole = Location(policy.file)
    if policy.description is None:
        yield LintWarning("no-description", "the policy does not say what it is for", whole)
    if policy.owner is None:
        yield LintWarning("no-owner", "nobody is named who answers for the policy", whole)
    if policy.mode is Mode.OFF:
        yield LintWarning("policy-off", "the policy is off: none of its rules acts", whole)
    if not policy.rules:
        yield LintWarning("no-rules", "the policy has no rules", whole)


def _features(policy: Policy) -> Iterator[LintWarning]:
    used = {name for rule in policy.rules for name in rule.targets}
    used |= {rule.when.condition.feature for rule in policy.rules if rule.when.condition}
    for feature in policy.features:
        if isinstance(feature, GroupFeature) and feature.name in used:
            used |= set(feature.members)
    for feature in policy.features:
        if feature.name not in used:
            message = f'no rule uses the feature "{feature.name}"'
            yield LintWarning("unused-feature", message, feature.location)


def _rule(policy: Policy, rule: Rule) -> Iterator[LintWarning]:
    name = f'the rule "{rule.name}"'
    if rule.mode is Mode.OFF:
        yield LintWarning("rule-off", f"{name} is off", rule.location)
    if rule.mode is Mode.ENFORCE and policy.mode is Mode.AUDIT:
        message = f"{name} asks for enforce, but the policy only audits"
        yield LintWarning("mode-without-effect", message, rule.location)
    unchanged = (rule.op is Op.AMPLIFY and rule.alpha == 0) or (
        rule.op is Op.SCALE and rule.factor == 1
    )
    if unchanged:
        yield LintWarning("no-change", f"{name} changes nothing", rule.location)
    if rule.rollout and rule.rollout.percent == 0:
        yield LintWarning("rollout-zero", f"{name} is rolled out to no request", rule.location)
    if rule.alert and not rule.alert.actions and not rule.alert.switch_on:
        yield LintWarning("alert-without-effect", f"{name} has no actions", rule.location)
    audits = Mode.AUDIT in (rule.mode, policy.mode)
    if rule.alert and audits and Action.ABORT in rule.alert.actions:
        message = f"{name} only audits: its abort ends no generation"
        yield LintWarning("abort-in-audit", message, rule.location)
    if rule.alert and rule.alert.switch_on and rule.mode in (Mode.AUDIT, Mode.OFF):
        others = " and ".join(f'"{other}"' for other in rule.alert.switch_on)
        message = f"{name} is in mode {rule.mode}: what it switches on, {others}, is so too"
        yield LintWarning("switch-without-effect", message, rule.location)


def _twice(policy: Policy) -> Iterator[LintWarning]:
    """Changes at a layer are summed, so two rules that each take a feature out push it below nothing."""
    first: dict[str, Rule] = {}
    for rule in policy.rules:
        if rule.op not in _REMOVES or rule.mode is Mode.OFF:
            continue
        for feature in _members(policy, rule.targets):
            if feature not in first:
                first[feature] = rule
            elif first[feature] is rule or first[feature].when == rule.when:
                message = (
                    f'"{feature}" is changed by "{first[feature].name}" and "{rule.name}": '
                    "the changes add up"
                )
                yield LintWarning("changed-twice", message, rule.location)


def _members(policy: Policy, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        feature = policy.feature(name)
        if isinstance(feature, GroupFeature):
            yield from feature.members
        else:
            yield name


def _exceptions(policy: Policy, today: datetime.date) -> Iterator[LintWarning]:
    for exemption in policy.exceptions:
        if datetime.date.fromisoformat(exemption.until) < today:
            message = f"the exception lapsed on {exemption.until}"
            yield LintWarning("exception-lapsed", message, exemption.location)
