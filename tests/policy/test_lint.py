from __future__ import annotations

import datetime

import pytest

from scope_runtime.policy import parse_policy
from scope_runtime.policy.lint import lint

TODAY = datetime.date(2027, 1, 31)

CLEAN = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: p, owner: ops, description: a test}
spec:
  mode: enforce
  features:
    a: {pack: a.gguf, layer: 1, id: 1}
    b: {pack: a.gguf, layer: 1, id: 2}
    g: {group: [a]}
  rules:
    - {name: r, mute: g}
    - {name: s, scale: b, factor: 0.5}
    - {name: t, alert: a, above: 1, actions: [log]}
  exceptions:
    - {selector: {tenant: acme}, rules: [r], owner: ops, until: 2027-01-31}
"""


def said(text: str) -> list[str]:
    return [str(w) for w in lint(parse_policy(text, file="p.yaml", files=False), TODAY)]


def test_a_clean_policy_has_no_warnings() -> None:
    assert said(CLEAN) == []


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        (", description: a test", "", "p.yaml: the policy does not say what it is for [no-description]"),
        (", owner: ops", "", "p.yaml: nobody is named who answers for the policy [no-owner]"),
        ("mode: enforce", "mode: off", "p.yaml: the policy is off: none of its rules acts [policy-off]"),
        ("scale: b", "scale: a, when: {phase: prompt}", 'p.yaml:8:5: no rule uses the feature "b" [unused-feature]'),
        ("mute: g", "mute: g, mode: off", 'p.yaml:11:7: the rule "r" is off [rule-off]'),
        ("factor: 0.5", "factor: 1", 'p.yaml:12:7: the rule "s" changes nothing [no-change]'),
        ("scale: b, factor: 0.5", "amplify: b, alpha: 0", 'p.yaml:12:7: the rule "s" changes nothing [no-change]'),
        ("factor: 0.5", "factor: 2, rollout: {percent: 0, by: app}",
         'p.yaml:12:7: the rule "s" is rolled out to no request [rollout-zero]'),
        ("actions: [log]", "actions: []", 'p.yaml:13:7: the rule "t" has no actions [alert-without-effect]'),
        ("actions: [log]", "mode: audit, actions: [abort]",
         'p.yaml:13:7: the rule "t" only audits: its abort ends no generation [abort-in-audit]'),
        ("mute: g", "mute: [g, b]", 'p.yaml:12:7: "b" is changed by "r" and "s": the changes add up [changed-twice]'),
        ("mute: g", "mute: [g, a]", 'p.yaml:11:7: "a" is changed by "r" and "r": the changes add up [changed-twice]'),
        ("2027-01-31", "2027-01-30", "p.yaml:15:7: the exception lapsed on 2027-01-30 [exception-lapsed]"),
    ],
)  # fmt: skip
def test_what_is_seldom_meant_is_said(old: str, new: str, warning: str) -> None:
    assert old in CLEAN
    assert said(CLEAN.replace(old, new, 1)) == [warning]


def test_a_rule_cannot_be_stronger_than_its_policy() -> None:
    text = CLEAN.replace("mode: enforce", "mode: audit").replace(
        "mute: g", "mute: g, mode: enforce"
    )
    assert said(text) == [
        'p.yaml:11:7: the rule "r" asks for enforce, but the policy only audits [mode-without-effect]'
    ]


def test_a_policy_without_rules() -> None:
    text = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p, owner: o, description: d}\nspec: {}\n"
    assert said(text) == ["p.yaml: the policy has no rules [no-rules]"]
