"""Behaviour 6: tokens a second with the policy on and off, in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.bench import AGAIN, ARMS, OFF, ON, Plan, measure
from scope_runtime.errors import UsageError
from scope_runtime.policy import load_policy, policy_revision
from tests.conftest import Scope, Tiny

PLAN = Plan(n_prompt=12, n_answer=5, n_rounds=4)


def test_behaviour_6_the_arms_take_turns_and_only_one_is_steered(tiny: Tiny) -> None:
    shares: list[float] = []
    with Runtime(tiny.model, n_ctx=64, n_threads=1) as runtime:
        arms = measure(runtime, tiny.policy, PLAN, progress=shares.append)
        requests = [e for e in runtime.events() if e.what == "summary"]
        after = runtime.program.revision
    revision = policy_revision(load_policy(tiny.policy))
    by_round = [requests[i : i + 3] for i in range(0, len(requests), 3)]
    assert len(by_round) == PLAN.n_rounds + 1
    for together in by_round:
        assert sorted(e.revisions[0].revision for e in together) == sorted(
            ["none", "none", revision]
        )
        assert {(e.detail["n_prompt"], e.detail["n_answer"]) for e in together} == {(12, 5)}
        assert all(e.detail["n_reused"] == 0 for e in together)
    assert after == "none"
    assert [arm.name for arm in arms] == list(ARMS)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)

    # The first round warms and counts for nothing; the rest is what the records say.
    steered = [e for e in requests[3:] if e.revisions[0].revision == revision]
    rates = sorted(4 / e.detail["timing"]["generation_s"] for e in steered)
    on = next(arm for arm in arms if arm.name == ON)
    seconds = sorted(1 / rate for rate in rates)
    assert on.decode_tokens_per_s == pytest.approx(2 / (seconds[1] + seconds[2]))
    assert on.n_tokens == 4 * PLAN.n_rounds
    assert next(arm for arm in arms if arm.name == OFF).decode_ratio is None
    again = next(arm for arm in arms if arm.name == AGAIN).decode_ratio
    assert again is not None
    assert again.lower <= again.median <= again.upper


def test_a_policy_that_ends_every_answer_cannot_be_timed(tiny: Tiny, tmp_path: Path) -> None:
    text = tiny.policy.read_text().replace("above: -1.0}", "above: -1.0, actions: [log, abort]}")
    for name in ("pack.gguf", "vector.gguf"):
        (tmp_path / name).write_bytes(tiny.policy.with_name(name).read_bytes())
    policy = tmp_path / "abort.yaml"
    policy.write_text(text)
    with (
        Runtime(tiny.model, n_ctx=64, n_threads=1) as runtime,
        pytest.raises(UsageError, match="ended nearly every answer before a token could be timed"),
    ):
        measure(runtime, policy, PLAN)


def test_the_command_prints_every_arm(tiny: Tiny, scope: Scope) -> None:
    ask = ("bench", "-m", tiny.model, "-P", tiny.policy, "--ctx", 64, "-t", 1)
    size = ("--prompt-tokens", 8, "--answer-tokens", 4, "--rounds", 2)
    done = scope(*ask, *size)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0].strip() for line in done.stdout.splitlines()[1:]] == list(ARMS)
    said = json.loads(scope(*ask, *size, "--json").stdout)
    assert said["plan"] == {"n_prompt": 8, "n_answer": 4, "n_rounds": 2, "seed": 0}
    assert [arm["name"] for arm in said["arms"]] == list(ARMS)
    assert said["arms"][2]["decode_ratio"]["n_blocks"] == 2


def test_a_plan_that_measures_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="n_rounds is too small; found 1; expected 2"):
        Plan(n_rounds=1)
