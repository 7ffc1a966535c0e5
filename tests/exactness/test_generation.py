"""Every generated token is steered, and nothing computed under one policy serves another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scope_runtime.runtime import Runtime
from tests.exactness.conftest import BOUND, POINTS, Equal, Twin
from tests.support.hooked_llama import hooked_llama
from tests.support.interventions import CASES, N_PROMPT, Case
from tests.support.torch_reference import Rule, run

N_ANSWER = 24


def steering(twin: Twin, *, phase: str | None = None) -> Case:
    """Strong enough to change most tokens."""
    middle = twin.point(twin.layer("middle"))
    one, two, three = middle.firing(3)
    last = twin.point(twin.layer("last")).firing(1)
    return Case(
        (
            Rule("mute", (one, two), phase=phase),
            Rule("amplify", (three,), alpha=3.0, phase=phase),
            Rule("amplify", tuple(last), alpha=0.3, unit="residual", phase=phase),
        )
    )


@pytest.mark.parametrize("phase", [None, "generation"])
def test_greedy_answer_is_the_references(twin: Twin, phase: str | None) -> None:
    """Each token is the reference's best at its position, given the tokens before it."""
    case, asked = steering(twin, phase=phase), twin.tokens(N_PROMPT)
    with twin.runtime(twin.policy(case)) as runtime:
        answer = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
    wanted = run(
        twin.model.torch_model, [*asked, *answer.tokens], case.rules, n_prompt=N_PROMPT
    ).logits
    assert len(answer.tokens) == N_ANSWER
    for position, token in enumerate(answer.tokens, N_PROMPT - 1):
        row = wanted[position]
        assert row[token] >= row.max() - 2 * BOUND * np.ptp(wanted)
    unsteered = run(twin.model.torch_model, [*asked, *answer.tokens]).logits
    best = unsteered[N_PROMPT - 1 : -1].argmax(axis=1)
    assert (best != answer.tokens).sum() > N_ANSWER // 4, "the policy does not change the answer"


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("point", POINTS)
def test_logits_token_by_token(point: str, case_name: str, twin: Twin, equal: Equal) -> None:
    """A prompt in one batch, then single tokens: states go on from one decode to the next."""
    tokens = twin.tokens()
    case = CASES[case_name](twin.point(twin.layer(point)))
    with hooked_llama(twin.model.path, twin.policy(case)) as hooked:
        hooked.live_hook.request_begin(0, 1, N_PROMPT)
        found = [hooked.decode(tokens[:N_PROMPT], 0, all_logits=True)]
        for position in range(N_PROMPT, len(tokens)):
            found.append(hooked.decode([tokens[position]], position)[None])
    wanted = run(
        twin.model.torch_model, tokens, case.rules, n_prompt=N_PROMPT, dose_max=case.dose_max
    )
    equal(np.concatenate(found), wanted.logits, "token by token")


def state_after(runtime: Runtime) -> bytes:
    """All that llama.cpp keeps of the sequence: its KV, bit for bit."""
    return runtime._engine.context.save(0)


@pytest.mark.parametrize("first", ["steered", "unsteered"])
def test_cache_does_not_cross_policies(twin: Twin, first: str) -> None:
    """A, then B on the same prompt, then A again: each as if it had been the only one."""
    asked = twin.tokens(N_PROMPT)
    steered = twin.policy(steering(twin), "steered")
    unsteered = twin.policy(Case(()), "unsteered")
    one, other = (steered, unsteered) if first == "steered" else (unsteered, steered)

    fresh: dict[Path, tuple[tuple[int, ...], bytes]] = {}
    for policy in (one, other):
        with twin.runtime(policy) as runtime:
            answer = runtime.generate(asked, max_tokens=N_ANSWER, temperature=1.0, seed=7)
            fresh[policy] = (answer.tokens, state_after(runtime))
    assert fresh[one][0] != fresh[other][0]

    with twin.runtime(one) as runtime:
        for policy in (one, other, one):
            runtime.set_policy(policy)
            answer = runtime.generate(asked, max_tokens=N_ANSWER, temperature=1.0, seed=7)
            assert answer.n_reused == 0
            assert (answer.tokens, state_after(runtime)) == fresh[policy]


def test_cache_serves_the_same_revision(twin: Twin) -> None:
    """A comment is no new revision: what was computed before it serves after it."""
    asked = twin.tokens(N_PROMPT)
    policy = twin.policy(steering(twin))
    with twin.runtime(policy) as runtime:
        before = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
        policy.write_text("# the same rules\n" + policy.read_text())
        runtime.set_policy(policy)
        again = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
    assert again.n_reused == N_PROMPT - 1
    assert again.tokens == before.tokens


def test_change_during_an_answer(twin: Twin, equal: Equal) -> None:
    """Tokens before the change are the first policy's, later ones the second's; their KV is not reused."""
    asked = twin.tokens(N_PROMPT)
    one, two = twin.policy(Case(()), "before"), twin.policy(steering(twin), "after")
    with twin.runtime(one) as runtime:
        first = runtime.program.revision
        pieces = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0, stream=True)
        for _ in range(5):
            next(pieces)
        second = runtime.set_policy(two).revision
        *_, answer = pieces
        assert not isinstance(answer, str)
        assert [span.revision for span in answer.revisions] == [first, second]
        again = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
        assert again.n_reused == 0
        state = state_after(runtime)
    with twin.runtime(two) as runtime:
        fresh = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
        assert (again.tokens, state) == (fresh.tokens, state_after(runtime))


def test_an_answer_is_no_prompt_under_a_policy_that_looks_at_the_phase(twin: Twin) -> None:
    """The next turn's prompt holds the answer; its KV was made in another phase and is made anew."""
    asked = twin.tokens(N_PROMPT)
    with twin.runtime(twin.policy(steering(twin, phase="generation"))) as runtime:
        answer = runtime.generate(asked, max_tokens=N_ANSWER, temperature=0.0)
        longer = [*asked, *answer.tokens, *twin.tokens(4, seed=3)]
        turn = runtime.generate(longer, max_tokens=N_ANSWER, temperature=0.0)
        assert turn.n_reused <= N_PROMPT - 1
    with twin.runtime(twin.policy(steering(twin, phase="generation"))) as runtime:
        fresh = runtime.generate(longer, max_tokens=N_ANSWER, temperature=0.0)
    assert turn.tokens == fresh.tokens
