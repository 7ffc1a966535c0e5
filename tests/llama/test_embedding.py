"""Embeddings: llama-cpp-python's own of the same model, steered as a prompt is, on record like any request."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scope_runtime import Runtime
from scope_runtime.errors import ModelError, UsageError
from scope_runtime.llama.embedding import N_BATCH
from scope_runtime.types import Pooling
from tests.conftest import Tiny
from tests.support.random_pack import write_control_vector

TEXTS = ("the sea is wide", "The river", "a small city by the sea")
LONG = "The river runs to the sea. " * 20
BOUND = 1e-5
LONG_COSINE = 0.9999  # of several batches: attention over other columns changes last bits, which grow block by block
TYPES = {Pooling.MEAN: 1, Pooling.CLS: 2, Pooling.LAST: 3}  # llama_pooling_type
PROMPT = [5, 17, 33, 80, 41, 60, 77]


class Reference:
    """llama-cpp-python's embeddings, pooled by llama.cpp itself."""

    def __init__(self, model: Path, pooling: Pooling) -> None:
        # Imported late: the runtime's hook must come before llama.cpp in a process that uses both.
        import llama_cpp

        self._api = llama_cpp
        self._llama = llama_cpp.Llama(
            str(model),
            embedding=True,
            pooling_type=TYPES[pooling],
            n_ctx=512,
            n_batch=512,
            n_ubatch=512,
            n_threads=1,
            flash_attn=True,  # as llama.cpp itself chooses here
            verbose=False,
        )

    def embed(self, text: str, rows: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """The vector at length 1; ``rows`` (n_layer - 1, n_embd) is a control vector to compute it under."""
        if rows is not None:
            data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            n_layer = rows.shape[0] + 1
            code = self._api.llama_set_adapter_cvec(
                self._llama.ctx, data, rows.size, rows.shape[1], 1, n_layer - 1
            )
            assert code == 0
        return np.array(self._llama.embed(text, normalize=True))

    def close(self) -> None:
        self._llama.close()


@pytest.mark.parametrize("pooling", TYPES)
def test_the_vectors_are_those_of_llama_cpp_python(tiny: Tiny, pooling: Pooling) -> None:
    with Runtime(tiny.model, n_ctx=512, n_threads=1, embeddings=pooling) as runtime:
        ours = {text: runtime.embed(text) for text in (*TEXTS, LONG)}
    reference = Reference(tiny.model, pooling)
    try:
        theirs = {text: reference.embed(text) for text in ours}
    finally:
        reference.close()
    assert ours[LONG].n_prompt > N_BATCH
    for text, made in ours.items():
        if text == LONG:
            assert made.vector @ theirs[text] >= LONG_COSINE
        else:
            assert np.abs(made.vector - theirs[text]).max() <= BOUND
        assert np.linalg.norm(made.vector) == pytest.approx(1, abs=1e-6)
    assert np.abs(ours[TEXTS[0]].vector - ours[TEXTS[1]].vector).max() > 100 * BOUND


def test_a_steered_vector_is_llama_cpps_under_its_own_control_vector(
    tiny: Tiny, tmp_path: Path
) -> None:
    with Runtime(tiny.model, n_ctx=64, n_threads=1, embeddings=Pooling.MEAN) as runtime:
        shape = runtime.shape
        row = np.random.default_rng(0).standard_normal(shape.n_embd).astype(np.float32)
        rows = np.zeros((shape.n_layer - 1, shape.n_embd), np.float32)
        rows[0] = row
        write_control_vector(tmp_path / "vector.gguf", {1: row})
        policy = tmp_path / "push.yaml"
        policy.write_text(
            """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: push}
spec:
  features: {style: {vector: vector.gguf, layers: [1]}}
  rules: [{name: push, amplify: style, alpha: 1.0, unit: absolute}]
"""
        )
        plain = runtime.embed(TEXTS[0]).vector
        runtime.set_policy(policy)
        steered = runtime.embed(TEXTS[0])
        runtime.set_policy(None)
        assert np.array_equal(runtime.embed(TEXTS[0]).vector, plain)
    reference = Reference(tiny.model, Pooling.MEAN)
    try:
        assert np.abs(steered.vector - reference.embed(TEXTS[0], rows)).max() <= BOUND
    finally:
        reference.close()
    assert np.abs(steered.vector - plain).max() > 100 * BOUND
    (rule,) = steered.report[:-1]
    assert (rule.rule, rule.detail["n_fired"]) == ("push", steered.n_prompt)


@pytest.fixture
def runtime(tiny: Tiny) -> Iterator[Runtime]:
    with Runtime(
        tiny.model, tiny.policy, n_ctx=256, n_threads=1, embeddings=Pooling.LAST
    ) as opened:
        yield opened


def test_all_of_a_text_is_prompt_and_on_record(runtime: Runtime) -> None:
    made = runtime.embed(PROMPT, labels={"tenant": "a"}, request_id="mine")
    records = [e for e in runtime.events() if e.request_id == "mine"]
    assert tuple(records) == made.report
    *rules, summary = made.report
    assert [e.rule for e in rules if e.what == "rule"] == ["quiet", "push", "watch"]
    by_name = {e.rule: e.detail for e in rules if e.what == "rule"}
    assert by_name["quiet"]["n_tokens"] == len(PROMPT)
    assert by_name["push"]["n_tokens"] == 0  # when: {phase: generation}
    said: dict[str, Any] = summary.record()
    assert said["task"] == "embedding"
    assert "sampling" not in said
    assert (said["n_prompt"], said["n_answer"], said["finish_reason"]) == (len(PROMPT), 0, "stop")
    assert said["labels"] == {"tenant": "a"}
    assert [s["revision"] for s in said["revisions"]] == [runtime.program.revision]
    assert said["revisions"][0]["from_position"] == 0


def test_answers_beside_it_keep_what_they_have(runtime: Runtime) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    before = runtime.generate(PROMPT, **asked)
    stream = runtime.generate(PROMPT, stream=True, **asked)
    first = next(stream)
    vector = runtime.embed(PROMPT[::-1]).vector
    *_, last = (first, *stream)
    assert last.tokens == before.tokens
    assert last.n_reused == len(PROMPT) - 1
    assert np.array_equal(runtime.embed(PROMPT[::-1]).vector, vector)


def test_a_policy_can_end_it_and_so_can_who_asks(tiny: Tiny, tmp_path: Path) -> None:
    text = tiny.policy.read_text().replace("above: -1.0}", "above: -1.0, actions: [log, abort]}")
    for name in ("pack.gguf", "vector.gguf"):
        (tmp_path / name).write_bytes(tiny.policy.with_name(name).read_bytes())
    policy = tmp_path / "abort.yaml"
    policy.write_text(text)
    with Runtime(tiny.model, policy, n_ctx=64, n_threads=1, embeddings=Pooling.MEAN) as runtime:
        ended = runtime.embed(PROMPT)
        assert (ended.finish_reason, ended.vector.size) == ("abort", 0)
        left = runtime.embed(PROMPT, cancelled=lambda: True)
        assert (left.finish_reason, left.vector.size) == ("cancelled", 0)
        summaries = [e.detail["finish_reason"] for e in runtime.events() if e.what == "summary"]
    assert summaries == ["abort", "cancelled"]


def test_what_cannot_be_is_refused_in_words(tiny: Tiny, runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="the text has no tokens"):
        runtime.embed([])
    with pytest.raises(UsageError, match="does not fit into the context; found 257 tokens"):
        runtime.embed([1] * 257)
    with pytest.raises(UsageError, match="a token that the model has not"):
        runtime.embed([-1])
    assert runtime.embed([1] * 256).n_prompt == 256
    with (
        Runtime(tiny.model, n_ctx=16, n_threads=1) as none,
        pytest.raises(UsageError, match="computes no embeddings"),
    ):
        none.embed(PROMPT)
    with pytest.raises(ModelError, match="does not say how an embedding is made") as refused:
        Runtime(tiny.model, n_ctx=16, n_threads=1, embeddings=Pooling.MODEL)
    assert "Say mean, cls or last" in str(refused.value)
