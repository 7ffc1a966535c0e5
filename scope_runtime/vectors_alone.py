"""What control vectors carry without a hook: a direction that is added, at every token of every request.

Each thing of a policy that needs more is refused here, so that nothing is left out without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

from scope_runtime.errors import CompileError, Location, PolicyErrors, ScopeError
from scope_runtime.policy.model import Mode, Op, Policy, Rule, Unit
from scope_runtime.program import ProgramRule
from scope_runtime.select import ProgramSource

_HINT = "Only amplify, with alpha in units absolute or max, for every request alike; or steer with the hook"


def check_vectors_alone(source: ProgramSource) -> None:
    """Refuses policies of which control vectors would carry only a part.

    Args:
        source: compiled with every block among ``control_vector_layers``.

    Raises:
        CompileError, PolicyErrors: what of which policy cannot be carried, and where it stands.
    """
    errors: list[ScopeError] = []
    first = source.policies[0].name if source.policies else ""
    placed = {(rule.policy or first, rule.name): rule for rule in source.program.rules}
    for policy in source.policies:
        if policy.mode is not Mode.OFF:
            errors += _of_policy(policy)
            for rule in policy.rules:
                if rule.mode is not Mode.OFF:
                    errors += _of_rule(policy, rule, placed.get((policy.name, rule.name)))
    if not errors and source.program.hooks:
        # A rule of a kind that is not known here: it must not pass unseen.
        errors = [
            _refused(rule.name, "acts on the callback plane", source.policies[0].name_at)
            for rule in source.program.rules
            if rule.plane != "control-vector"
        ]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise PolicyErrors(tuple(errors))


def _of_policy(policy: Policy) -> Iterator[CompileError]:
    at = policy.name_at
    if policy.mode is Mode.AUDIT:
        yield _refused("mode: audit", "nothing is measured", at)
    if policy.selector is not None:
        yield _refused("selector", "one control vector is for every request", at)
    if policy.dose_limit is not None:
        yield _refused("limits.dose", "nothing is measured", policy.dose_limit.location)
    for exception in policy.exceptions:
        yield _refused(
            "an exception", "one control vector is for every request", exception.location
        )


def _of_rule(policy: Policy, rule: Rule, placed: ProgramRule | None) -> Iterator[CompileError]:
    def refused(what: str, why: str) -> CompileError:
        return _refused(f"{what} of rule {rule.name}", why, rule.location)

    when, whole = rule.when, "one control vector is for every token"
    if rule.op is Op.ALERT:
        yield refused("the alert", "nothing is measured")
    elif rule.op is not Op.AMPLIFY:
        yield refused(str(rule.op), "it goes by each token's residual, which is not read")
    if rule.unit is Unit.RESIDUAL:
        yield refused(
            "unit: residual", "it goes by the length of each token's residual, which is not read"
        )
    if rule.mode is Mode.AUDIT and policy.mode is not Mode.AUDIT:
        yield refused("mode: audit", "nothing is measured")
    if when.phase is not None:
        yield refused("when.phase", whole)
    if when.positions is not None:
        yield refused("when.positions", whole)
    if when.condition is not None:
        yield refused("the condition", "nothing is measured")
    if rule.rollout is not None:
        yield refused("rollout", "one control vector is for every request")
    if rule.op is Op.AMPLIFY and placed is not None and min(placed.layers, default=1) < 1:
        yield refused("a feature", "llama.cpp adds control vectors from block 1 on")


def _refused(what: str, why: str, location: Location) -> CompileError:
    message = f"llama.cpp's control vector cannot carry {what}: {why}"
    return CompileError(message, location=location, hint=_HINT)
