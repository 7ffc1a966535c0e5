"""Several policies in force at once: what makes them contradict each other, and one policy that stands for them.

A merged policy is an ordinary Policy, so that everything that compiles, measures and explains one works on it. Its
features and rules are called ``member/name``; ``unmerged`` gives a program's rules their own names back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scope_runtime.errors import CompileError, PolicyError, PolicyErrors, ScopeError
from scope_runtime.plan import PlannedRule
from scope_runtime.policy.model import (
    Apply,
    Contents,
    DoseLimit,
    Feature,
    GroupFeature,
    Keep,
    Mode,
    OnExcess,
    Op,
    Policy,
    Rule,
    When,
)
from scope_runtime.program import Program
from scope_runtime.resolve import Latent

SEPARATOR = "/"  # no name of a policy, rule or feature may hold one
_ORDER = (Mode.OFF, Mode.AUDIT, Mode.ENFORCE)
_STRICTNESS = (OnExcess.WARN, OnExcess.CLAMP, OnExcess.ABORT)
# Each of these sets an activation; two of them on one feature would both be subtracted.
_SETS = (Op.MUTE, Op.SCALE, Op.CLAMP)


def merged(policies: Sequence[Policy]) -> Policy:
    """One policy with the rules of all, in the order of the members' names; a single member is itself.

    The dose limit is the smallest one; the set is applied at the next request if any member asks for that.
    """
    members = sorted(policies, key=lambda policy: policy.name)
    if len(members) == 1:
        return members[0]
    first = members[0]
    return replace(
        first,
        name=" + ".join(policy.name for policy in members),
        owner=None,
        generation=None,
        description=None,
        model=None,  # each member was held against the model by itself
        mode=Mode.ENFORCE,
        apply=(
            Apply.NEXT_REQUEST
            if any(policy.apply is Apply.NEXT_REQUEST for policy in members)
            else Apply.NEXT_TOKEN
        ),
        selector=None,
        features=tuple(
            _prefixed_feature(policy, feature) for policy in members for feature in policy.features
        ),
        dose_limit=_strictest([p.dose_limit for p in members if p.dose_limit is not None]),
        rules=tuple(_prefixed_rule(policy, rule) for policy in members for rule in policy.rules),
        exceptions=(),
        canonical="",
        contents=contents_of(members),
    )


def contents_of(members: Sequence[Policy]) -> Contents:
    """What is kept of a request's prompt and output: of what its policies say, the most private counts."""

    def most_private(said: Sequence[Keep | None]) -> Keep | None:
        return next((keep for keep in Keep if keep in said), None)

    return Contents(
        most_private([policy.contents.prompts for policy in members]),
        most_private([policy.contents.outputs for policy in members]),
    )


def inner(policy: Policy, name: str) -> str:
    """What a member's rule or feature is called in the merged policy."""
    return f"{policy.name}{SEPARATOR}{name}"


def unmerged(program: Program, members: Sequence[Policy], revision: str) -> Program:
    """The program of a set's merged members: its rules under their own names, its revision the whole set's."""
    rules = []
    for rule in program.rules:
        member, _, name = rule.name.rpartition(SEPARATOR)
        if member:
            prefix = f"{member}{SEPARATOR}"
            targets = tuple(
                replace(target, words=target.words.removeprefix(prefix)) for target in rule.targets
            )
            rule = replace(rule, name=name, targets=targets, why=rule.why.replace(prefix, ""))
        rules.append(replace(rule, policy=member or members[0].name))
    return replace(program, rules=tuple(rules), revision=revision)


def check_set(policies: Sequence[Policy]) -> None:
    """Holds the members against each other, as far as their text goes.

    Raises:
        PolicyErrors: two have one name, or dose limits that cannot both be kept on one request.
    """
    errors: list[ScopeError] = []
    for one, other in itertools.combinations(policies, 2):
        if one.name == other.name:
            errors.append(
                PolicyError(
                    "another policy of the set has this name",
                    location=other.name_at,
                    key="metadata.name",
                    found=f'"{other.name}", as at {one.name_at}',
                    expected="a name of its own",
                    related=(one.name_at,),
                )
            )
        its, others = one.dose_limit, other.dose_limit
        if its is None or others is None or its.on_excess is others.on_excess:
            continue
        if overlap(one, other):
            errors.append(
                PolicyError(
                    "two policies of the set disagree on what happens above the dose limit",
                    location=others.location,
                    key="spec.limits.dose.on_excess",
                    found=str(others.on_excess),
                    expected=f"{its.on_excess}, as at {its.location}",
                    hint="Or let selectors tell their requests apart.",
                    related=(its.location,),
                )
            )
    if errors:
        raise PolicyErrors(tuple(errors))


def overlap(one: Policy, other: Policy) -> bool:
    """Whether some request could get both policies."""
    if one.selector is None or other.selector is None:
        return True
    values = dict(one.selector)
    return all(
        key not in values or bool(set(values[key]) & set(wanted)) for key, wanted in other.selector
    )


def check_rules(plans: Sequence[tuple[Policy, Sequence[PlannedRule]]]) -> None:
    """Refuses rules of different policies that would both set one feature's activation on one request.

    Raises:
        PolicyErrors: every such pair, at the rule of the later policy.
    """
    errors: list[ScopeError] = []
    for (one, its), (other, others) in itertools.combinations(plans, 2):
        if overlap(one, other):
            errors += _contradictions(its, other, others)
    if errors:
        raise PolicyErrors(tuple(errors))


def _contradictions(
    its: Sequence[PlannedRule], other: Policy, others: Sequence[PlannedRule]
) -> Iterator[ScopeError]:
    for first, second in itertools.product(its, others):
        if Mode.AUDIT in (first.mode, second.mode) or _apart(first.rule.when, second.rule.when):
            continue
        for latent in sorted(_claimed(first) & _claimed(second)):
            name = next(
                t.name for t in second.targets if isinstance(t, Latent) and _place(t) == latent
            )
            yield CompileError(
                f"two policies of the set both change the feature {name} of layer {latent[1]}",
                location=second.rule.location,
                found=f'"{second.rule.op}" by {other.name}, rule {second.rule.name}',
                expected=f'one rule for it; there is "{first.rule.op}" at {first.rule.location}',
                hint="Or let selectors tell their requests apart.",
                related=(first.rule.location,),
            )


def _claimed(planned: PlannedRule) -> set[tuple[str, int, int]]:
    """The features whose activation the rule sets; an ablated one is taken out as a muted one is."""
    if planned.rule.op not in (*_SETS, Op.ABLATE):
        return set()
    return {_place(target) for target in planned.targets if isinstance(target, Latent)}


def _place(latent: Latent) -> tuple[str, int, int]:
    return (latent.pack.digest, latent.layer, latent.id)


def _apart(one: When, other: When) -> bool:
    """Whether two rules act in different phases, never at one token."""
    return one.phase is not None and other.phase is not None and one.phase is not other.phase


def _prefixed_feature(policy: Policy, feature: Feature) -> Feature:
    name = inner(policy, feature.name)
    if isinstance(feature, GroupFeature):
        return replace(feature, name=name, members=tuple(inner(policy, m) for m in feature.members))
    return replace(feature, name=name)


def _prefixed_rule(policy: Policy, rule: Rule) -> Rule:
    when, alert = rule.when, rule.alert
    if when.condition is not None:
        condition = replace(when.condition, feature=inner(policy, when.condition.feature))
        when = replace(when, condition=condition)
    if alert is not None:
        alert = replace(alert, switch_on=tuple(inner(policy, name) for name in alert.switch_on))
    return replace(
        rule,
        name=inner(policy, rule.name),
        targets=tuple(inner(policy, name) for name in rule.targets),
        mode=min(policy.mode, rule.mode or policy.mode, key=_ORDER.index),
        when=when,
        alert=alert,
        rollout=None,  # decided before the merge
    )


def _strictest(limits: Sequence[DoseLimit]) -> DoseLimit | None:
    if not limits:
        return None
    smallest = min(limits, key=lambda limit: limit.max)
    hardest = max((limit.on_excess for limit in limits), key=_STRICTNESS.index)
    return replace(smallest, on_excess=hardest)
