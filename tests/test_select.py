"""Who gets which rule: selector, rollout and exceptions."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import Policy
from scope_runtime.select import active_rules, left_out

TODAY = date(2026, 6, 1)
TEXT = """
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: p, description: d}
spec:
  selector: {tenant: [acme, globex]}
  features:
    a: {vector: a.gguf}
  rules:
    - {name: always, amplify: a, alpha: 1.0}
    - {name: some, amplify: a, alpha: 1.0, rollout: {percent: 10, by: user}}
    - {name: half, amplify: a, alpha: 1.0, rollout: {percent: 50, by: request}}
  exceptions:
    - {selector: {tenant: acme}, rules: [always], owner: ops, until: 2026-06-01}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    root = tmp_path_factory.mktemp("select")
    (root / "a.gguf").write_bytes(b"never opened here")
    return parse_policy(TEXT, file=str(root / "p.yaml"), root=Path(root))


def test_a_request_outside_the_selector_gets_nothing(policy: Policy) -> None:
    assert active_rules(policy, {}, "r", TODAY) == frozenset()
    assert active_rules(policy, {"tenant": "other"}, "r", TODAY) == frozenset()
    assert "always" in active_rules(policy, {"tenant": "globex"}, "r", TODAY)


def test_an_exception_holds_until_its_last_day_and_lapses_after(policy: Policy) -> None:
    acme = {"tenant": "acme"}
    assert "always" not in active_rules(policy, acme, "r", date(2026, 6, 1))
    assert "always" in active_rules(policy, acme, "r", date(2026, 6, 2))


def test_a_rollout_reaches_its_share_and_sticks(policy: Policy) -> None:
    def users_reached() -> set[int]:
        return {
            n
            for n in range(4000)
            if "some" in active_rules(policy, {"tenant": "globex", "user": f"u{n}"}, f"r{n}", TODAY)
        }

    reached = users_reached()
    assert 320 < len(reached) < 480  # 10 % of 4000, four standard deviations either side
    assert users_reached() == reached
    assert not any(
        "some" in active_rules(policy, {"tenant": "globex"}, f"r{n}", TODAY) for n in range(100)
    )


def test_rollouts_of_two_rules_are_independent(policy: Policy) -> None:
    both = [
        active_rules(policy, {"tenant": "globex", "user": str(n)}, str(n), TODAY)
        for n in range(4000)
    ]
    some = [rules for rules in both if "some" in rules]
    assert 0.35 < sum("half" in rules for rules in some) / len(some) < 0.65


def test_why_a_rule_is_left_out(policy: Policy) -> None:
    assert left_out(policy, {}, "r", TODAY) == dict.fromkeys(("always", "some", "half"), "selector")
    acme = left_out(policy, {"tenant": "acme"}, "r", TODAY)
    assert acme.pop("always") == "exception"
    assert acme.pop("some") == "rollout"  # no label "user" to go by
    assert set(acme.values()) <= {"rollout"}
