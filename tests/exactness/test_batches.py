"""However a prompt is cut into batches, and whatever shares them, each token gets its own steering."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from scope_runtime.runtime import Runtime
from tests.exactness.conftest import BOUND, POINTS, Equal, Twin, difference
from tests.support.hooked_llama import hooked_llama
from tests.support.interventions import CASES, N_PROMPT, Case, prompt
from tests.support.plain_llama import Logits, PlainLlama
from tests.support.torch_reference import Rule, run

N_BATCH, N_UBATCH = 16, 7


@pytest.fixture(scope="module")
def small_batches(twin: Twin) -> Iterator[Runtime]:
    with twin.runtime(n_batch=N_BATCH, n_ubatch=N_UBATCH) as runtime:
        yield runtime


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("point", POINTS)
def test_prompt_longer_than_an_ubatch(
    point: str, case_name: str, twin: Twin, small_batches: Runtime, equal: Equal
) -> None:
    """Conditions, hysteresis and counts go on across the cuts."""
    case = CASES[case_name](twin.point(twin.layer(point)))
    small_batches.set_policy(twin.policy(case))
    found = small_batches.logits(twin.tokens(), n_prompt=N_PROMPT)
    wanted = run(
        twin.model.torch_model,
        twin.tokens(),
        case.rules,
        n_prompt=N_PROMPT,
        dose_max=case.dose_max,
    )
    equal(found, wanted.logits, "prompt over several ubatches")


def test_long_prompt(twin: Twin, small_batches: Runtime, runtimes: dict[str, Runtime]) -> None:
    tokens = prompt(twin.model.shape.n_vocab, 300)
    point = twin.point(twin.layer("middle"))
    policy = twin.policy(Case((Rule("mute", tuple(point.firing(4))),)))
    small_batches.set_policy(policy)
    runtimes["qwen3"].set_policy(policy)
    found = small_batches.logits(tokens)
    assert difference(found, runtimes["qwen3"].logits(tokens)) <= BOUND


def test_control_vector_over_several_ubatches(twin: Twin, small_batches: Runtime) -> None:
    tokens = prompt(twin.model.shape.n_vocab, 300)
    rule = Rule("amplify", tuple(twin.pack.directions.values()), alpha=0.7)
    small_batches.set_policy(twin.policy(Case((rule,))))
    with PlainLlama(twin.model.path, n_batch=N_BATCH, n_ubatch=N_UBATCH) as plain:
        scaled = {n: np.float32(0.7) * vector.d for n, vector in twin.pack.directions.items()}
        plain.set_control_vector(scaled)
        np.testing.assert_array_equal(small_batches.logits(tokens), plain.logits(tokens))


@pytest.mark.parametrize("point", POINTS)
def test_prompt_of_which_only_the_last_logits_are_wanted(
    point: str, twin: Twin, equal: Equal
) -> None:
    """The last block then has no rows in the first ubatches, and one in the last."""
    tokens = twin.tokens()
    case = CASES["several rules"](twin.point(twin.layer(point)))
    with hooked_llama(
        twin.model.path, twin.policy(case), n_batch=N_BATCH, n_ubatch=N_UBATCH
    ) as hooked:
        hooked.live_hook.request_begin(0, 1, N_PROMPT)
        found = [hooked.decode(tokens[:N_PROMPT], 0)]
        for position in range(N_PROMPT, len(tokens)):
            found.append(hooked.decode([tokens[position]], position))
        assert hooked.live_hook.stats.n_unmatched == 0
    wanted = run(twin.model.torch_model, tokens, case.rules, n_prompt=N_PROMPT).logits
    equal(np.stack(found), wanted[N_PROMPT - 1 :], "last logits only")


@pytest.mark.parametrize("case_name", ["phase generation", "phase prompt", "condition on a sum"])
@pytest.mark.parametrize("point", POINTS)
def test_sequences_in_one_batch(point: str, case_name: str, twin: Twin, equal: Equal) -> None:
    """Three sequences, columns interleaved: two requests with prompts of their own, one of nobody's."""
    lengths, n_prompts = (20, 26, 12), (8, 19, None)
    tokens = [twin.tokens()[:20], twin.tokens(26, seed=1), twin.tokens(12, seed=2)]
    case = CASES[case_name](twin.point(twin.layer(point)))
    columns = sorted(
        (position, sequence) for sequence, n in enumerate(lengths) for position in range(n)
    )
    with hooked_llama(twin.model.path, twin.policy(case), n_seq_max=3, n_ubatch=17) as hooked:
        for sequence, n_prompt in enumerate(n_prompts):
            if n_prompt is not None:
                hooked.live_hook.request_begin(sequence, sequence + 1, n_prompt)
        rows = hooked.decode_columns(
            [tokens[sequence][position] for position, sequence in columns],
            [position for position, _ in columns],
            [sequence for _, sequence in columns],
            [1] * len(columns),
        )
    for sequence, n_prompt in enumerate(n_prompts):
        found = np.stack([row for row, (_, s) in zip(rows, columns, strict=True) if s == sequence])
        rules = case.rules if n_prompt is not None else ()
        wanted = run(twin.model.torch_model, tokens[sequence], rules, n_prompt=n_prompt)
        equal(found, wanted.logits, "sequences in one batch")


def test_one_generates_while_another_reads_its_prompt(twin: Twin, equal: Equal) -> None:
    """Continuous batching: each batch holds one token of the first and four of the second."""
    first, second = twin.tokens(20), twin.tokens(32, seed=1)
    rules = (
        Rule("mute", tuple(twin.point(1).firing(4)), phase="generation"),
        Rule("amplify", tuple(twin.point(2).firing(1)), alpha=2.0, phase="prompt"),
    )
    found: dict[int, list[Logits]] = {0: [], 1: []}
    with hooked_llama(twin.model.path, twin.policy(Case(rules)), n_seq_max=2) as hooked:
        hooked.live_hook.request_begin(0, 1, 12)
        hooked.live_hook.request_begin(1, 2, 30)
        found[0] += list(hooked.decode(first[:12], 0, all_logits=True))
        for step in range(8):
            at = range(4 * step, 4 * step + 4)
            rows = hooked.decode_columns(
                [first[12 + step], *(second[i] for i in at)],
                [12 + step, *at],
                [0, 1, 1, 1, 1],
                [1] * 5,
            )
            found[0].append(rows[0])
            found[1] += rows[1:]
    for sequence, (tokens, n_prompt) in enumerate([(first, 12), (second, 30)]):
        wanted = run(twin.model.torch_model, tokens, rules, n_prompt=n_prompt).logits
        equal(np.stack(found[sequence]), wanted, "continuous batching")
