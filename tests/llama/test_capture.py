"""Captured residuals against forward hooks on the same weights, and what capture must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from scope_runtime.errors import HookError, UsageError
from scope_runtime.llama import library
from scope_runtime.llama.capture import capturing, residuals, windows
from scope_runtime.llama.context import Context
from scope_runtime.llama.probe import add_blob
from scope_runtime.policy.model import EMBEDDING
from tests.support.interventions import prompt
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.torch_reference import Rule, Vector, run

library.load()


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    name = getattr(request, "param", "qwen3")
    return make_random_model(name, tmp_path_factory.mktemp("capture"))


@pytest.fixture(scope="module")
def context(model: RandomModel) -> Iterator[Context]:
    with capturing(model.path, n_ctx=300, n_threads=1, use_extra_bufts=False) as context:
        yield context


def reference(model: RandomModel, tokens: list[int], layers: list[int]) -> dict[int, np.ndarray]:
    """Transformers' residuals: a hook point is visited where a rule stands."""
    zero = np.zeros(model.shape.n_embd, np.float32)
    rules = [Rule("amplify", (Vector(layer, zero),)) for layer in layers]
    with torch.no_grad():
        return run(model.torch_model, tokens, rules).residuals


@pytest.mark.parametrize("model", sorted(SHAPES), indirect=True)
def test_every_hook_point_is_that_of_pytorch(model: RandomModel, context: Context) -> None:
    layers = [EMBEDDING, *range(model.shape.n_layer)]
    texts = [prompt(model.shape.n_vocab, n, seed) for seed, n in enumerate((1, 23, 290))]
    found = list(residuals(context, texts, layers))
    assert [list(each.tokens) for each in found] == texts
    for each, tokens in zip(found, texts, strict=True):
        wanted = reference(model, tokens, layers)
        assert list(each.layers) == layers
        for layer in layers:
            assert each.layers[layer].shape == (len(tokens), model.shape.n_embd)
            scale = np.abs(wanted[layer]).max()
            # llama.cpp keeps the KV in F16; a block further on differs by a hundred times that.
            assert np.abs(each.layers[layer] - wanted[layer]).max() <= 1e-3 * scale, layer


def test_only_the_layers_asked_for(context: Context) -> None:
    [found] = residuals(context, ["abc"], [2, 1, 2])
    assert list(found.layers) == [1, 2]
    assert list(residuals(context, ["", []], [1])) == []


def test_logits_stay_the_same_bit_for_bit(context: Context) -> None:
    tokens = prompt(context.n_vocab, 20, 3)
    plain = context.decode(tokens, 0, all_logits=True)
    context.forget()
    context.live_hook.capture([0, 2], 100)
    captured = context.decode(tokens, 0, all_logits=True)
    context.live_hook.capture([])
    context.forget()
    assert np.array_equal(plain, captured)


def test_what_arrives_is_taken_before_it_is_steered(context: Context) -> None:
    hook, tokens = context.live_hook, prompt(context.n_vocab, 6, 5)
    [plain] = residuals(context, [tokens], [1, 2])
    row = np.ones(context.shape.n_embd, np.float32)
    hook.install(add_blob(context, {1: row}))
    hook.request_begin(0, 1, len(tokens))
    hook.capture([1, 2], 100)
    context.decode(tokens, 0)
    rows, h = hook.captured()
    hook.capture([])
    hook.request_end(0)
    context.forget()
    hook.install(add_blob(context, {}))
    hook.drain()
    assert rows[:, 0].tolist() == [1] * 6 + [2] * 6
    assert rows[:6, 2].tolist() == list(range(6))
    assert rows[6:, 3].tolist() == tokens
    assert np.array_equal(h[:6], plain.layers[1])
    assert not np.allclose(h[6:], plain.layers[2])


def test_what_finds_no_room_is_an_error(context: Context) -> None:
    context.live_hook.capture([0], 3)
    context.decode(prompt(context.n_vocab, 4, 0), 0)
    with pytest.raises(HookError, match="4 residuals found no room"):
        context.live_hook.captured()
    context.live_hook.capture([])
    context.forget()


def test_refusals(context: Context) -> None:
    with pytest.raises(UsageError, match=r"no such layer; found 99; expected 0 to"):
        next(residuals(context, ["a"], [99]))
    with pytest.raises(UsageError, match="longer than the context"):
        next(residuals(context, [[1] * (context.n_ctx + 1)], [0]))
    with pytest.raises(HookError, match="cannot be captured"):
        context.live_hook.capture([-2], 1)


def test_windows() -> None:
    assert windows(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert windows([], 2) == []


def test_it_works_where_columns_are_told_by_hand(model: RandomModel, tmp_path: Path) -> None:
    """As under a llama.cpp that was loaded before the hook."""
    del tmp_path
    tokens = prompt(model.shape.n_vocab, 30, 1)
    last = model.shape.n_layer - 1
    with capturing(model.path, n_ctx=64, n_threads=1, use_extra_bufts=False) as context:
        [wanted] = residuals(context, [tokens], [0, last])
        hook = context.live_hook
        hook.capture([0, last], 100)
        hook.columns(tokens, range(30), [0] * 30, [1] * 30)
        context.decode(tokens, 0, all_logits=True)
        rows, h = hook.captured()
        assert len(rows) == 60
        assert np.array_equal(h[rows[:, 0] == last], wanted.layers[last])
