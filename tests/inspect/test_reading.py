"""What a model computes on a text, held against logits and the policy's formulas; and where texts come from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scope_runtime import Runtime
from scope_runtime.audit.logged import logged_request
from scope_runtime.audit.segments import find_logs
from scope_runtime.errors import UsageError
from scope_runtime.inspect import Reader, recorded
from scope_runtime.inspect.reader import changed
from scope_runtime.inspect.reading import decoded
from scope_runtime.llama.capture import capturing, residuals
from scope_runtime.llama.chat import Message
from scope_runtime.llama.observe import Observed, likeliest
from scope_runtime.packs import read_pack
from scope_runtime.policy.load import load_policies
from scope_runtime.recording import read_recording
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from tests.conftest import ROOT
from tests.inspect.conftest import ENGLISH_ONLY, F16, MODEL, PACK, QUESTION, RECORDING

DRIFT = (767, 843, 185, 28, 459)


def test_residuals_are_those_that_are_recorded(reader: Reader) -> None:
    reading = reader.text(QUESTION, [-1, 0, 3])
    assert reading.text == QUESTION
    assert reading.policy is None
    with capturing(MODEL, n_ctx=64, n_threads=1) as context:
        [other] = residuals(context, [reading.tokens], [-1, 0, 3])
    for layer, h in other.layers.items():
        np.testing.assert_array_equal(reading.layers[layer], h)
        assert reading.after[layer] is reading.layers[layer]


def test_what_it_was_about_to_say_is_what_the_logits_say(reader: Reader) -> None:
    reading = reader.text(QUESTION, [3], n_next=7)
    with Runtime(MODEL, n_ctx=64, n_threads=1) as runtime:
        logits = runtime.logits(reading.tokens).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for said, share in zip(reading.next, shares, strict=True):
        assert [each.token for each in said] == np.argsort(-share, kind="stable")[:7].tolist()
        np.testing.assert_allclose(
            [each.probability for each in said], np.sort(share)[::-1][:7], rtol=1e-9
        )


def test_of_equal_logits_the_lower_token_is_said_first() -> None:
    found = likeliest(np.array([0, 2, 1, 2, 2], np.float32), 2)
    assert [each.token for each in found] == [1, 3]
    assert found[0].probability == pytest.approx(np.e**2 / (3 * np.e**2 + np.e + 1))
    assert [each.token for each in likeliest(np.zeros(2, np.float32), 9)] == [0, 1]
    assert likeliest(np.zeros(2, np.float32), 0) == ()


@pytest.mark.parametrize("policy", [None, ENGLISH_ONLY])
def test_each_answer_token_is_what_it_was_about_to_say(policy: Path | None) -> None:
    """Read as it was generated: token by token, under the same policy, in the same phase."""
    with Reader(MODEL, policy, n_ctx=128, n_threads=1) as reader:
        reading = reader.answer(QUESTION, [3], max_tokens=40)
    n = reading.n_prompt or 0
    assert len(reading.tokens) == n + 40
    said = [each[0].token for each in reading.next[n - 1 : -1]]
    assert tuple(said) == reading.tokens[n:]
    assert (reading.policy is None) == (policy is None)
    assert bool(re.search("[\u4e00-\u9fff]", reading.text)) == (policy is None)
    # A part of a character is shown by its bytes.
    said_so = {each.text for row in reading.next for each in row}
    assert any(text.startswith("\\x") for text in said_so)
    assert not any("\ufffd" in text for text in said_so)


def test_after_the_policy_is_what_its_formula_makes_of_before() -> None:
    """``mute``: h less z·d of each feature, in phase generation, by numpy from the pack."""
    with Reader(MODEL, ENGLISH_ONLY, n_ctx=128, n_threads=1) as reader:
        reading = reader.answer(QUESTION, [2, 3], max_tokens=40)
    layer = read_pack(PACK).layer(3)
    assert layer.full_enc is not None
    assert layer.full_enc_bias is not None
    h = reading.layers[3].astype(np.float64)
    scores = h @ layer.full_enc.astype(np.float64).T + layer.full_enc_bias
    expected = h.copy()
    for token in range((reading.n_prompt or 0) - 1, len(h)):
        top = set(np.argsort(-scores[token])[: layer.k].tolist())
        for id in DRIFT:
            if id in top:
                expected[token] -= scores[token, id] * layer.dec[layer.row(id)]
    assert np.abs(expected - h).max() > 10
    np.testing.assert_allclose(reading.after[3], expected, atol=1e-3)
    np.testing.assert_array_equal(reading.after[2], reading.layers[2])


def test_side_by_side_engines_see_the_same() -> None:
    with Reader(MODEL, ENGLISH_ONLY, n_ctx=128, n_threads=1) as reader:
        one = reader.answer(QUESTION, [3], max_tokens=20)
    with Reader(MODEL, ENGLISH_ONLY, n_ctx=128, n_threads=1, n_parallel=2) as reader:
        other = reader.text(one.tokens, [3], n_prompt=one.n_prompt)
    assert other.policy == one.policy
    np.testing.assert_allclose(other.layers[3], one.layers[3], atol=1e-2)
    np.testing.assert_allclose(other.after[3], one.after[3], atol=1e-2)
    assert np.abs(one.after[3] - one.layers[3]).max() > 10


def test_what_a_control_vector_adds_is_not_seen() -> None:
    shape = ModelShape("qwen3", 4, 256)
    policy = load_policies(ROOT / "examples" / "tiny-qwen3" / "controls" / "drift-vector.yaml")
    program = ProgramSource(policy, shape, control_vector_layers=frozenset(range(4))).program
    assert program.control_vectors
    observed = Observed((1,), 1, {}, (), program)
    with pytest.raises(UsageError, match="what that adds is not seen"):
        changed(program, observed)


def test_the_answer_alone(reader: Reader) -> None:
    reading = reader.answer(QUESTION, [3], max_tokens=6)
    answer = reading.answer()
    n = reading.n_prompt or 0
    assert answer.tokens == reading.tokens[n:]
    assert answer.text == "".join(reading.pieces[n:])
    np.testing.assert_array_equal(answer.layers[3], reading.layers[3][n:])
    assert answer.answer() is not None
    assert reader.text("a", [3]).answer().text == "a"


def test_messages_and_token_ids(reader: Reader) -> None:
    chat = reader.text(QUESTION, [0], chat=True)
    assert chat.tokens == reader.text([{"role": "user", "content": QUESTION}], [0]).tokens
    assert chat.tokens == reader.text(chat.tokens, [0]).tokens
    assert chat.text.startswith("<|im_start|>user\nHi.")
    assert (chat.n_prompt, chat.has_answer) == (None, False)


def test_a_conversation_that_ends_with_an_answer_is_left_open_there(reader: Reader) -> None:
    asked = reader.text(QUESTION, [0], chat=True)
    messages: list[Message] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "Zhihai is<|im_end|>"},
    ]
    reading = reader.text(messages, [0])
    assert reading.text == asked.text + "Zhihai is<|im_end|>"
    assert reading.n_prompt == len(asked.tokens)
    assert reading.answer().text == "Zhihai is<|im_end|>"
    # What was written out in the answer is text, not the token that ends one.
    assert reading.tokens[-1] != asked.tokens[-5]
    assert len(reading.answer().tokens) > 6
    longer = reader.answer(messages, [0], max_tokens=3)
    assert longer.tokens[: len(reading.tokens)] == reading.tokens
    assert longer.n_prompt == len(asked.tokens)


@pytest.mark.parametrize("keeps_answers", [True, False])
def test_a_logged_request_is_read_again(
    tmp_path: Path, reader: Reader, keeps_answers: bool
) -> None:
    kept = "keep" if keeps_answers else "off"
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: keep}\n"
        f"spec: {{rules: [], audit: {{prompts: keep, outputs: {kept}}}}}\n"
    )
    log = tmp_path / "audit.jsonl"
    with Runtime(MODEL, policy, audit=log, n_ctx=128, n_threads=1) as runtime:
        answer = runtime.chat(QUESTION, max_tokens=8, temperature=0.0, request_id="r1")
    [files] = find_logs([log])
    request = logged_request(files, request_id="r1")
    reading = reader.logged(request, [3])
    asked, _ = reader.tokens(QUESTION, chat=True)
    assert reading.tokens == (*asked, *(answer.tokens if keeps_answers else ()))
    assert (reading.n_prompt, reading.name) == (len(asked), "request r1")
    with (
        Reader(F16, n_ctx=128, n_threads=1) as other,
        pytest.raises(UsageError, match="not the model that the request ran on"),
    ):
        other.logged(request, [3])


def test_a_recording_is_read_without_a_model(reader: Reader) -> None:
    recording = read_recording(RECORDING)
    texts = recorded(recording, [2, 3])
    assert len(texts) == len(recording.texts)
    assert texts[0].name == "text 0 of tiny-qwen3.rec"
    assert texts[0].pieces[:2] == tuple(f"#{token}" for token in texts[0].tokens[:2])
    assert texts[0].n_prompt == recording.texts[0].n_prompt
    named = recorded(recording, [3], reader.pieces)[0]
    assert "Zhihai" in named.text
    again = reader.text(named.tokens, [3], n_prompt=named.n_prompt)
    np.testing.assert_allclose(named.layers[3], again.layers[3], rtol=2e-3, atol=0.2)
    with pytest.raises(UsageError) as refused:
        recorded(recording, [0, 3])
    assert str(refused.value) == (
        f"{RECORDING}: the recording lacks a layer; found layers 2, 3; expected 0"
    )


@pytest.mark.parametrize(
    ("parts", "pieces"),
    [
        ([b"a", "é".encode()], ("a", "é")),
        (["中".encode()[:1], "中".encode()[1:], b"!"], ("", "中", "!")),
        ([b"a", b"\xe4\xb8"], ("a", "\ufffd")),
        ([b"\xff", b"b"], ("\ufffd", "b")),
        ([], ()),
    ],
)
def test_a_character_is_the_text_of_the_token_that_completes_it(
    parts: list[bytes], pieces: tuple[str, ...]
) -> None:
    assert decoded(parts) == pieces


def test_texts_that_cannot_be_read(reader: Reader) -> None:
    with pytest.raises(UsageError, match="cannot compute logits of so many tokens"):
        reader.text([1] * 300, [3])
    with pytest.raises(UsageError, match="the model has no such layer; found 9; expected 0 to 3"):
        reader.text("a", [9])
    with pytest.raises(UsageError, match="n_prompt counts some of the tokens"):
        reader.text([1, 2], [3], n_prompt=3)
