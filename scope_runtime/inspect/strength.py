"""How strong a rule is, as one number, and a policy with another one."""

from __future__ import annotations

from typing import Any

from scope_runtime.errors import Location, UsageError
from scope_runtime.policy.format import edited
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import Op, Policy, Rule

SWEPT = (Op.MUTE, Op.SCALE, Op.AMPLIFY)


def swept_rule(policy: Policy, name: str | None = None) -> Rule:
    """The rule whose strength is looked for: the one of that name, or the only one that has a strength.

    Raises:
        UsageError: there is none, or several and no name.
    """
    able = [rule for rule in policy.rules if rule.op in SWEPT]
    if name is not None:
        able = [rule for rule in policy.rules if rule.name == name]
        if able and able[0].op not in SWEPT:
            raise UsageError(
                f"the rule {name} has no strength",
                location=able[0].location,
                found=str(able[0].op),
                expected=", ".join(SWEPT),
            )
    if len(able) != 1:
        raise UsageError(
            "there is no rule with a strength" if not able else "several rules have a strength",
            location=Location(policy.file),
            found=", ".join(rule.name for rule in able or policy.rules) or None,
            expected="one of mute, scale or amplify; or --rule NAME",
        )
    return able[0]


def strength_of(rule: Rule) -> float:
    """``amplify``: its alpha. ``mute`` and ``scale``: the share of the activation that is taken away."""
    if rule.op is Op.AMPLIFY:
        return rule.alpha or 0.0
    return 1.0 if rule.op is Op.MUTE else 1.0 - (rule.factor or 0.0)


def with_strength(text: str, file: str, rule: str, strength: float) -> str:
    """The policy's text with another strength of a rule; comments live.

    Raises:
        PolicyError: the text cannot be laid out without touching more than that.
    """
    number = float(f"{strength:.6g}")

    def edit(document: Any) -> None:
        [found] = [each for each in document["spec"]["rules"] if each["name"] == rule]
        if "amplify" in found:
            found["alpha"] = number
            return
        factor = round(1.0 - number, 6)
        if "mute" in found and factor != 0:
            place = list(found).index("mute")
            comment = found.ca.items.pop("mute", None)
            target = found.pop("mute")
            found.insert(place, "scale", target)
            found.insert(place + 1, "factor", factor)
            if comment is not None:
                found.ca.items["factor"] = comment
        elif "scale" in found:
            found["factor"] = factor

    return edited(text, file, edit)


def at_strength(text: str, policy: Policy, rule: str, strength: float) -> Policy:
    """The policy with another strength of a rule, in memory alone."""
    changed = with_strength(text, policy.file, rule, strength)
    return parse_policy(changed, file=policy.file, root=policy.root)
