"""Programs on recordings: the same as brute force over the same residuals, and as the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.compile import check_against_packs
from scope_runtime.llama import library
from scope_runtime.llama.record import record
from scope_runtime.policy.load import load_policy
from scope_runtime.recording import RecordedText, Recording, read_recording
from scope_runtime.replay import ReplayError, hook_points, recorded_text, replay
from scope_runtime.runtime import Runtime
from tests.conftest import Tiny
from tests.support.interventions import CASES, N_PROMPT, N_TOKENS, Case, Point
from tests.support.policy_files import write_policy
from tests.support.random_model import SHAPES
from tests.support.random_pack import RandomPack, make_random_pack
from tests.support.torch_reference import Rule, _Steering

library.load()

LAYER = 2
WIDTH = SHAPES["qwen3"].n_embd
HALF = float(np.finfo(np.float16).eps)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> RandomPack:
    return make_random_pack(SHAPES["qwen3"], tmp_path_factory.mktemp("pack"))


def recorded(seed: int = 0) -> RecordedText:
    rng = np.random.default_rng(seed)
    layers = {
        layer: rng.standard_normal((N_TOKENS, WIDTH)).astype(np.float16)
        for layer in (LAYER - 1, LAYER)
    }
    return RecordedText(tuple(range(N_TOKENS)), layers, N_PROMPT)


def point(pack: RandomPack, text: RecordedText) -> Point:
    at = {layer: h.astype(np.float64) for layer, h in text.layers.items()}
    return Point(LAYER, pack, at[LAYER], at[LAYER - 1])


@pytest.mark.parametrize("name", CASES)
def test_a_replay_is_what_brute_force_says(name: str, pack: RandomPack) -> None:
    text = recorded()
    case: Case = CASES[name](point(pack, text))
    path = write_policy(pack.folder / "p.yaml", pack, case.rules, dose_max=case.dose_max)
    program = check_against_packs(load_policy(path))
    found = replay(program, *recorded_text(recording(text), 0, program))
    wanted = _Steering(case.rules, N_PROMPT, case.dose_max)
    for layer in hook_points(program):
        h = text.layers[layer].astype(np.float64)
        after = h + wanted.change(layer, h)
        assert np.abs(found.residuals[layer] - after).max() <= 2e-5 * np.abs(after).max()
    if len(case.rules) == 1:
        doses = np.nan_to_num(found.rules[0].dose)
        wanted_doses = wanted.steered.doses[LAYER]
        assert np.abs(doses - wanted_doses).max() <= 2e-5 * max(wanted_doses.max(), 1e-9)
        assert np.array_equal(found.rules[0].fired, wanted_doses > 0)
    assert (found.n_tokens, found.n_prompt, found.aborted) == (N_TOKENS, N_PROMPT, False)


def recording(text: RecordedText) -> Recording:
    return Recording("r.rec", "ab", (text,))


def test_an_alert_that_aborts_ends_the_replay_where_it_fires(
    pack: RandomPack, tmp_path: Path
) -> None:
    text = recorded()
    latent = pack.gated(pack.latents[LAYER][0], "none")
    pre = text.layers[LAYER].astype(np.float64) @ latent.w.astype(np.float64) + latent.b
    answer = pre[N_PROMPT:]
    above = float(np.sort(answer)[-2] + answer.max()) / 2
    path = write_policy(pack.folder / "a.yaml", pack, [Rule("mute", (latent,))])
    written = path.read_text().replace("mute:\n    - none", "alert:\n    - none")
    path.write_text(
        written
        + f"    above: {above}\n    actions: [abort]\n    when: {{positions: {{from: 1, of: answer}}}}\n"
    )
    program = check_against_packs(load_policy(path))
    found = replay(program, text, N_PROMPT)
    assert found.aborted
    assert found.n_tokens == N_PROMPT + int(answer.argmax()) + 1
    assert [e.what for e in found.events] == ["firing", "rule"]
    assert found.rules[0].activation[-1] == pytest.approx(answer.max(), rel=1e-5)
    assert np.isnan(found.rules[0].activation[:N_PROMPT]).all()


def test_what_does_not_fit_is_refused(pack: RandomPack) -> None:
    text = recorded()
    latent = pack.latents[LAYER + 1][0]
    path = write_policy(pack.folder / "b.yaml", pack, [Rule("mute", (latent,))])
    program = check_against_packs(load_policy(path))
    with pytest.raises(ReplayError) as missing:
        recorded_text(recording(text), 0, program)
    assert str(missing.value) == (
        "r.rec: the recording lacks a layer that b needs; found layers 1, 2; expected 3. "
        "Record again with `scope record --policy`"
    )
    narrow = replace(text, layers={LAYER + 1: np.zeros((N_TOKENS, 3), np.float16)})
    with pytest.raises(ReplayError, match=f"another width; found 3; expected {WIDTH}"):
        recorded_text(recording(narrow), 0, program)
    fits = replace(text, layers={LAYER + 1: text.layers[LAYER]})
    with pytest.raises(ReplayError, match="no such text; found text 1; expected 0 to 0"):
        recorded_text(recording(fits), 1, program)
    with pytest.raises(ReplayError, match="longer than the text; found 41 tokens"):
        recorded_text(recording(fits), 0, program, 41)
    assert recorded_text(recording(fits), 0, program)[1] == N_PROMPT
    assert recorded_text(recording(replace(fits, n_prompt=None)), 0, program)[1] == N_TOKENS


def test_a_replay_reports_what_the_model_does(tiny: Tiny, tmp_path: Path) -> None:
    """In audit mode nothing changes, so that every layer of the recording is what the model computes."""
    policy = tiny.policy.with_name("audit.yaml")
    policy.write_text(tiny.policy.read_text().replace("spec:", "spec:\n  mode: audit"))
    prompt = "the sun rises over the hill"
    rec = tmp_path / "r.rec"
    record(tiny.model, [prompt], rec, max_tokens=7, n_threads=1)
    with Runtime(tiny.model, policy, n_threads=1) as runtime:
        answer = runtime.generate(prompt, max_tokens=8, temperature=0.0)
        tokens = runtime.tokenize(prompt)
    (text,) = read_recording(rec).texts
    assert text.tokens == (*tokens, *answer.tokens[:7])
    assert text.n_prompt == len(tokens)
    found = replay(check_against_packs(load_policy(policy)), text, text.n_prompt)
    wanted = {e.rule: e.detail for e in answer.report if e.what == "rule"}
    assert {e.rule for e in found.events if e.what == "rule"} == set(wanted)
    for event in found.events:
        if event.what != "rule":
            continue
        want = wanted[event.rule]
        assert event.detail["n_tokens"] == want["n_tokens"]
        assert event.detail["n_fired"] == pytest.approx(want["n_fired"], abs=1)
        for what in ("activation", "dose"):
            for key in ("max", "mean"):
                found_value, value = event.detail[what][key], want[what][key]
                assert (found_value is None) == (value is None)  # amplify measures nothing
                assert found_value is None or found_value == pytest.approx(value, rel=20 * HALF)
