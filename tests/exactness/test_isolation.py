"""Each sequence under a program of its own in one batch: what its neighbours run under is nothing to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from scope_runtime.compile import compile_policy
from scope_runtime.errors import HookError
from scope_runtime.llama.context import Context
from scope_runtime.native.hook import Span
from scope_runtime.policy.load import load_policy
from tests.exactness.conftest import BOUND, POINTS, Equal, Twin, difference
from tests.support.hooked_llama import hooked_llama
from tests.support.interventions import CASES, Case
from tests.support.plain_llama import Logits
from tests.support.torch_reference import Rule, run

PROMPTS = (12, 19, 8)
LENGTHS = (20, 26, 14)


def held(twin: Twin, hooked: Context, case: Case, name: str) -> int:
    program = compile_policy(load_policy(twin.policy(case, name)), hooked.shape)
    return hooked.live_hook.hold(program.blob)


def sequences(twin: Twin) -> list[list[int]]:
    return [twin.tokens(length, seed=seed) for seed, length in enumerate(LENGTHS)]


def decode_together(
    hooked: Context, tokens: list[list[int]], requests: Mapping[int, int]
) -> list[Logits]:
    """Logits of every sequence, columns interleaved in one batch; requests: sequence to n_prompt."""
    for sequence, n_prompt in requests.items():
        hooked.live_hook.request_begin(sequence, sequence + 1, n_prompt)
    columns = sorted((p, s) for s, row in enumerate(tokens) for p in range(len(row)))
    rows = hooked.decode_columns(
        [tokens[s][p] for p, s in columns],
        [p for p, _ in columns],
        [s for _, s in columns],
        [1] * len(columns),
    )
    return [
        np.stack([row for row, (_, s) in zip(rows, columns, strict=True) if s == sequence])
        for sequence in range(len(tokens))
    ]


def three_cases(twin: Twin, layer: int) -> list[Case]:
    point = twin.point(layer)
    return [CASES[name](point) for name in ("several rules", "phase generation", "ablate span")]


@pytest.mark.parametrize("point", POINTS)
def test_three_programs_in_one_batch(point: str, twin: Twin, equal: Equal) -> None:
    cases = three_cases(twin, twin.layer(point))
    tokens = sequences(twin)
    with hooked_llama(twin.model.path, n_seq_max=3, n_ubatch=17) as hooked:
        serials = {s: held(twin, hooked, case, f"p{s}") for s, case in enumerate(cases)}
        hooked.live_hook.assign(serials)
        found = decode_together(hooked, tokens, dict(enumerate(PROMPTS)))
        assert hooked.live_hook.stats.n_unmatched == 0
        for sequence, serial in serials.items():
            spans = hooked.live_hook.spans(sequence)
            assert spans == [Span(0, LENGTHS[sequence], serial)]
    for sequence, (case, n_prompt) in enumerate(zip(cases, PROMPTS, strict=True)):
        wanted = run(
            twin.model.torch_model,
            tokens[sequence],
            case.rules,
            n_prompt=n_prompt,
            dose_max=case.dose_max,
        )
        equal(found[sequence], wanted.logits, "a program for each sequence")


def test_tenant_a_is_muted_and_b_does_not_notice(twin: Twin) -> None:
    """B's logits in the batch: bit for bit those beside an unsteered A, and B's alone to what batching does."""
    rule = Rule("mute", tuple(twin.point(1).firing(4)))
    tokens = sequences(twin)[:2]
    found: dict[bool, list[Logits]] = {}
    for muted in (True, False):
        with hooked_llama(twin.model.path, n_seq_max=2) as hooked:
            mute = held(twin, hooked, Case((rule,)), "mute")
            hooked.live_hook.assign({0: mute} if muted else {})
            found[muted] = decode_together(hooked, tokens, {0: 1, 1: 1})
    assert difference(found[True][0], found[False][0]) > 100 * BOUND
    np.testing.assert_array_equal(found[True][1], found[False][1])
    with hooked_llama(twin.model.path, n_seq_max=2) as hooked:
        alone = hooked.decode(tokens[1], 0, sequence=1, all_logits=True)
    assert difference(found[True][1], alone) <= BOUND


def test_one_sequence_changes_its_program_between_two_tokens(twin: Twin) -> None:
    """The other, generating in the same batches, goes on as it was."""
    mute = Case((Rule("mute", tuple(twin.point(1).firing(4))),))
    first, second = sequences(twin)[:2]
    found: dict[bool, list[list[Logits]]] = {}
    for changes in (True, False):
        with hooked_llama(twin.model.path, n_seq_max=2) as hooked:
            hook = hooked.live_hook
            serial = held(twin, hooked, mute, "mute")
            hook.assign({1: serial})
            hook.request_begin(0, 1, 1)
            hook.request_begin(1, 2, 1)
            rows = []
            for step in range(8):
                if changes and step == 4:
                    hook.assign({0: serial, 1: serial})
                rows.append(
                    hooked.decode_columns([first[step], second[step]], [step, step], [0, 1], [1, 1])
                )
            if changes:
                assert hook.spans(0) == [Span(0, 4, 0), Span(4, 8, serial)]
                assert hook.spans(1) == [Span(0, 8, serial)]
            found[changes] = rows
    for step in range(8):
        np.testing.assert_array_equal(found[True][step][1], found[False][step][1])
        assert np.array_equal(found[True][step][0], found[False][step][0]) == (step < 4)


def test_an_assignment_takes_held_programs_alone(twin: Twin) -> None:
    with hooked_llama(twin.model.path) as hooked:
        hook = hooked.live_hook
        serial = held(twin, hooked, Case((Rule("mute", tuple(twin.point(1).firing(1))),)), "one")
        number = hook.assign({0: serial})
        hook.release(serial)
        assert hook.assign({}, others=serial) == number + 1
        assert hook.in_force
        with pytest.raises(HookError, match="program 99 is not held"):
            hook.release(99)
        with pytest.raises(HookError, match="a program is neither held nor in force"):
            hook.assign({0: 99})
        with pytest.raises(HookError, match="a sequence is out of range"):
            hook.assign({-1: serial})
