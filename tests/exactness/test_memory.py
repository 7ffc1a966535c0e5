"""Rollback, shift, copy and restore: results and measurements go with the tokens."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scope_runtime.llama.context import Context
from scope_runtime.native.abi import UNKNOWN_SERIAL
from tests.exactness.conftest import POINTS, Equal, Twin
from tests.support.hooked_llama import hooked_llama
from tests.support.interventions import CASES, N_PROMPT, Case
from tests.support.plain_llama import Column, Logits, PlainLlama
from tests.support.torch_reference import Rule, Steered, run

STATEFUL = ("condition with hysteresis", "condition on a sum", "switched on by an alert")
REQUEST_END = 4


def one_by_one(context: Context, tokens: list[int], first: int, sequence: int = 0) -> Logits:
    """Decodes single tokens, as a generation does."""
    return np.stack(
        [
            context.decode([token], position, sequence=sequence)
            for position, token in enumerate(tokens, first)
        ]
    )


def reference(twin: Twin, case: Case, tokens: list[int], n_prompt: int = N_PROMPT) -> Steered:
    return run(
        twin.model.torch_model, tokens, case.rules, n_prompt=n_prompt, dose_max=case.dose_max
    )


def vector_case(twin: Twin) -> tuple[Case, dict[int, NDArray[np.float32]]]:
    """Steering that llama.cpp can do by itself: its control vector is then the oracle."""
    rule = Rule("amplify", tuple(twin.pack.directions.values()), alpha=0.6)
    return Case((rule,)), {n: np.float32(0.6) * v.d for n, v in twin.pack.directions.items()}


@pytest.mark.parametrize("case_name", [*STATEFUL, "several rules"])
@pytest.mark.parametrize("point", POINTS)
def test_rollback(point: str, case_name: str, twin: Twin, equal: Equal) -> None:
    """Eight tokens are tried, six of them rejected, others take their place: as if never tried."""
    case = CASES[case_name](twin.point(twin.layer(point)))
    tokens, tried = twin.tokens(), twin.tokens(6, seed=4)
    keep = N_PROMPT + 2
    with hooked_llama(twin.model.path, twin.policy(case)) as hooked:
        hook = hooked.live_hook
        hook.request_begin(0, 1, N_PROMPT)
        found = [hooked.decode(tokens[:N_PROMPT], 0, all_logits=True)]
        hooked.decode([*tokens[N_PROMPT:keep], *tried], N_PROMPT, all_logits=True)
        hooked.forget(0, keep)
        assert hook.measured(0, keep, len(case.rules)) is None
        found.append(one_by_one(hooked, tokens[keep:], keep))
        hook.request_end(0)
        (end,) = (event for event in hook.drain() if event.kind == REQUEST_END)
    wanted = reference(twin, case, tokens).logits
    equal(found[0], wanted[:N_PROMPT], "rollback")
    equal(found[1], wanted[keep:], "rollback")
    assert end.n_tokens == len(tokens)


def test_rollback_is_llama_cpps(twin: Twin) -> None:
    case, vectors = vector_case(twin)
    tokens, tried = twin.tokens(), twin.tokens(6, seed=4)
    with (
        hooked_llama(twin.model.path, twin.policy(case)) as hooked,
        PlainLlama(twin.model.path) as plain,
    ):
        plain.set_control_vector(vectors)
        hooked.live_hook.request_begin(0, 1, N_PROMPT)
        for each in (hooked, plain):
            decode = each.decode if each is hooked else plain.extend
            decode([*tokens[:N_PROMPT], *tried], 0)
            each.forget(0, N_PROMPT)
        for position, token in enumerate(tokens[N_PROMPT:], N_PROMPT):
            found = hooked.decode([token], position)
            np.testing.assert_array_equal(found, plain.decode([Column(token, position)])[0])


def test_shift(twin: Twin) -> None:
    """Six tokens in the middle are dropped and the rest moves up, as llama.cpp's context shift does."""
    case, vectors = vector_case(twin)
    tokens = twin.tokens()
    first, end = 4, 10
    with (
        hooked_llama(twin.model.path, twin.policy(case)) as hooked,
        PlainLlama(twin.model.path) as plain,
    ):
        plain.set_control_vector(vectors)
        hook = hooked.live_hook
        hook.request_begin(0, 1, N_PROMPT)
        hooked.decode(tokens[:N_PROMPT], 0)
        plain.extend(tokens[:N_PROMPT], 0)
        before = [hook.measured(0, position, 1) for position in range(end, N_PROMPT)]
        for each in (hooked, plain):
            each.forget(0, first, end)
            each.shift(0, end, N_PROMPT, first - end)
        for position, old in enumerate(before, first):
            new = hook.measured(0, position, 1)
            assert old is not None
            assert new is not None
            np.testing.assert_array_equal(new.dose, old.dose)
        at = N_PROMPT - (end - first)
        assert hook.measured(0, at, 1) is None
        for position, token in enumerate(tokens[N_PROMPT:], at):
            found = hooked.decode([token], position)
            np.testing.assert_array_equal(found, plain.decode([Column(token, position)])[0])
            assert hook.measured(0, position, 1) is not None


def test_shifted_tokens_stay_in_their_phase(twin: Twin) -> None:
    """After a shift the next column is the answer's still, though it stands before n_prompt."""
    (latent,) = twin.point(twin.layer("middle")).firing(1)
    case = Case((Rule("amplify", (latent,), alpha=2.0, phase="generation"),))
    tokens = twin.tokens()
    with (
        hooked_llama(twin.model.path, twin.policy(case)) as hooked,
        PlainLlama(twin.model.path) as plain,
    ):
        hook = hooked.live_hook
        hook.request_begin(0, 1, N_PROMPT)
        answer = N_PROMPT - 1
        hooked.decode(tokens[:answer], 0)
        plain.extend(tokens[:answer], 0)
        plain.set_control_vector({latent.layer: np.float32(2.0) * latent.d})
        hooked.decode([tokens[answer]], answer)
        plain.extend([tokens[answer]], answer)
        for each in (hooked, plain):
            each.forget(0, 2, 12)
            each.shift(0, 12, N_PROMPT, -10)
        for position, token in enumerate(tokens[N_PROMPT:], N_PROMPT - 10):
            found = hooked.decode([token], position)
            np.testing.assert_array_equal(found, plain.decode([Column(token, position)])[0])


@pytest.mark.parametrize("case_name", STATEFUL)
def test_copy(case_name: str, twin: Twin, equal: Equal) -> None:
    """One prompt read once, two answers: conditions go on from the copy in each."""
    case = CASES[case_name](twin.point(twin.layer("middle")))
    tokens = twin.tokens()
    answers = {0: tokens[N_PROMPT:], 1: twin.tokens(12, seed=5)}
    with hooked_llama(twin.model.path, twin.policy(case), n_seq_max=2) as hooked:
        hook = hooked.live_hook
        hook.request_begin(0, 1, N_PROMPT)
        hooked.decode(tokens[:N_PROMPT], 0)
        hooked.copy(0, 1)
        hook.request_begin(1, 2, N_PROMPT)
        found = {s: one_by_one(hooked, answer, N_PROMPT, s) for s, answer in answers.items()}
    for sequence, answer in answers.items():
        wanted = reference(twin, case, [*tokens[:N_PROMPT], *answer]).logits
        equal(found[sequence], wanted[N_PROMPT:], "copied sequence")


def test_restore(twin: Twin) -> None:
    """Saved, cleared, restored: as in plain llama.cpp, and the hook knows that it does not know."""
    case, vectors = vector_case(twin)
    tokens = twin.tokens()
    with (
        hooked_llama(twin.model.path, twin.policy(case)) as hooked,
        PlainLlama(twin.model.path) as plain,
    ):
        plain.set_control_vector(vectors)
        hook = hooked.live_hook
        hook.request_begin(0, 1, N_PROMPT)
        hooked.decode(tokens[:N_PROMPT], 0)
        plain.extend(tokens[:N_PROMPT], 0)
        saved = hooked.save(0)
        assert saved == plain.save(0)
        hook.request_end(0)
        hooked.forget()
        plain.clear()
        hooked.restore(0, saved, N_PROMPT)
        plain.restore(0, saved)
        assert [(s.first, s.end, s.serial) for s in hook.spans(0)] == [
            (0, N_PROMPT, UNKNOWN_SERIAL)
        ]
        hook.request_begin(0, 2, N_PROMPT)
        for position, token in enumerate(tokens[N_PROMPT:], N_PROMPT):
            found = hooked.decode([token], position)
            np.testing.assert_array_equal(found, plain.decode([Column(token, position)])[0])
            assert hook.measured(0, position, 1) is not None


def test_columns_of_no_request_are_left_alone(twin: Twin) -> None:
    """Warm-up, and whoever else uses the context: unsteered, unmeasured, uncounted, no event."""
    case = CASES["several rules"](twin.point(twin.layer("middle")))
    tokens = twin.tokens()
    with (
        hooked_llama(twin.model.path, twin.policy(case)) as hooked,
        PlainLlama(twin.model.path) as plain,
    ):
        hook = hooked.live_hook
        before = hook.stats.n_unsteered_columns
        found = hooked.decode(tokens, 0, all_logits=True)
        np.testing.assert_array_equal(found, plain.logits(tokens))
        assert hook.stats.n_unsteered_columns - before == len(tokens)
        measured = hook.measured(0, 3, len(case.rules))
        assert measured is None or not measured.fired.any()
        hooked.forget()
        hook.request_begin(0, 1, N_PROMPT)
        hooked.decode(tokens[:N_PROMPT], 0)
        hook.request_end(0)
        (end,) = (event for event in hook.drain() if event.kind == REQUEST_END)
        assert end.n_tokens == N_PROMPT


@pytest.mark.parametrize("point", POINTS)
def test_measurements(point: str, twin: Twin) -> None:
    """Activation and dose of every token are the reference's."""
    here = twin.point(twin.layer(point))
    one, two = here.firing(2)
    case = Case((Rule("mute", (one,)), Rule("amplify", (two,), alpha=1.5)))
    tokens = twin.tokens()
    with hooked_llama(twin.model.path, twin.policy(case)) as hooked:
        hooked.live_hook.request_begin(0, 1, N_PROMPT)
        hooked.decode(tokens, 0, all_logits=True)
        rows = [hooked.live_hook.measured(0, position, 2) for position in range(len(tokens))]
    wanted = reference(twin, case, tokens)
    h = wanted.residuals[one.layer]
    z = wanted.activations[id(one)]
    norms = np.linalg.norm(h, axis=1)
    known = [row for row in rows if row is not None]
    assert len(known) == len(tokens)
    np.testing.assert_allclose([row.activation[0] for row in known], z, atol=2e-2)
    mute, amplify = np.linalg.norm(one.d) * z / norms, 1.5 * np.linalg.norm(two.d) / norms
    np.testing.assert_allclose([row.dose[0] for row in known], mute, atol=2e-3)
    np.testing.assert_allclose([row.dose[1] for row in known], amplify, rtol=2e-3)
