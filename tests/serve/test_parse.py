"""Requests as asks: what is carried out, what is let be, what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pydantic import ValidationError

from scope_runtime.errors import ScopeError
from scope_runtime.llama.grammar import check_grammar, schema_grammar
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.controls import control_pattern, without_controls
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.parse import asks_of
from scope_runtime.serve.schemas import ChatRequest, CompletionRequest

HELLO = [{"role": "user", "content": "hello"}]


def chat(takes: frozenset[str] = frozenset(), **asked: Any) -> list[Ask]:
    request = ChatRequest.model_validate({"messages": HELLO, **asked})
    return asks_of(request, {"tenant": "a"}, "id", takes)


def completion(**asked: Any) -> list[Ask]:
    request = CompletionRequest.model_validate({"prompt": "hello", **asked})
    return asks_of(request, {}, "id", frozenset())


def test_what_is_not_said_is_the_default() -> None:
    (ask,) = chat()
    assert ask.messages == ({"role": "user", "content": "hello"},)
    assert ask.prompt is None
    assert ask.request_id == "id"
    assert ask.labels == {"tenant": "a"}
    assert (ask.sampling.temperature, ask.sampling.top_p, ask.sampling.top_k) == (0.8, 0.95, 40)
    assert ask.sampling.top_logprobs is None
    assert completion()[0].sampling.max_tokens == 16


def test_what_is_said_is_meant() -> None:
    (ask,) = chat(
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=-1,
        stop="x",
        max_tokens=5,
        max_completion_tokens=7,
        frequency_penalty=1,
        presence_penalty=-1,
        logit_bias={"3": 4},
        logprobs=True,
        top_logprobs=2,
    )
    drawn = ask.sampling
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0, 0.5, 3, 0.1)
    assert (drawn.stop, drawn.max_tokens, drawn.top_logprobs) == (("x",), 7, 2)
    assert (drawn.frequency_penalty, drawn.presence_penalty) == (1, -1)
    assert drawn.logit_bias == {3: 4}
    assert 0 <= (drawn.seed or -1) < 2**32 - 1


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_come_in_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert [ask.prompt for ask in completion(prompt=prompt)] == prompts


def test_several_answers_have_ids_and_seeds_of_their_own() -> None:
    asks = completion(prompt=["a", "b"], n=2, seed=5)
    assert [ask.prompt for ask in asks] == ["a", "a", "b", "b"]
    assert [ask.request_id for ask in asks] == ["id.0", "id.1", "id.2", "id.3"]
    assert [ask.sampling.seed for ask in asks] == [5, 6, 7, 8]
    with pytest.raises(ApiError, match="more than 64 answers"):
        completion(prompt=["a"] * 9, n=8)


def test_parts_of_text_are_one_text_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (ask,) = chat(messages=[{"role": "developer", "content": parts, "name": "x"}])
    assert ask.messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True},
        {"tools": [], "tool_choice": "none", "functions": None},
        {"best_of": 1, "echo": False, "suffix": ""},
    ],
)
def test_what_changes_nothing_is_let_be(harmless: dict[str, Any]) -> None:
    assert chat(**harmless) == chat()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": [1]}]},
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
    ],
)
def test_what_would_change_the_answer_is_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**asked)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_an_engine_may_take_more() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    (ask,) = chat(frozenset({"tools", "tool_choice"}), tools=tools, tool_choice="auto")
    assert ask.passed == {"tools": tools, "tool_choice": "auto"}
    form = {"type": "json_object"}
    (ask,) = chat(frozenset({"response_format"}), response_format=form)
    assert (ask.passed, ask.sampling.grammar) == ({"response_format": form}, "")


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"n": 0},
        {"n": 65},
        {"max_tokens": 0},
        {"stop": [""]},
        {"stop": ["a"] * 17},
        {"messages": []},
        {"scope": {"explian": True}},
        {"logit_bias": {"1": 101}},
    ],
)
def test_what_is_out_of_range_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        chat(**asked)


def test_a_schema_that_cannot_be_a_grammar() -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}
    with pytest.raises(ScopeError, match="cannot be turned into a grammar"):
        chat(response_format=schema)


@pytest.mark.parametrize("word", ["colou(r)?", "f(x (x)?)?", "[(c)?"])
def test_a_schemas_own_words_are_no_repetitions(word: str) -> None:
    """Folded like what the converter repeats, ``(r)?`` was asked of the answer as ``(r){0,1}``."""
    quoted = json.dumps(json.dumps(word))
    assert quoted in schema_grammar({"const": word})
    assert quoted in schema_grammar({"type": "object", "properties": {word: {"const": 1}}})
    assert quoted in schema_grammar({"items": {"enum": [word]}, "maxItems": 9, "type": "array"})


@pytest.mark.parametrize("word", ['say "hi"', "a\\b", "a\nb", "\x01", "\U0001f30a"])
def test_words_that_the_converter_writes_wrong_are_refused(word: str) -> None:
    """A backslash or a line end was asked of the answer as it stands, which is no JSON."""
    schemas: list[Any] = [{"const": word}, {"enum": [{"a": word}]}, {"properties": {word: {}}}]
    for schema in schemas:
        with pytest.raises(ScopeError, match="its grammar would not hold"):
            schema_grammar({"type": "array", "items": schema})
    schema_grammar({"enum": ["\u00e9", "\u6d77", 1, None]})
    schema_grammar({"type": "object", "properties": {"const": {"pattern": "^\\\\d$"}}})


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a"{' + " " * 60_000,
        'root ::= "a"{' + "0" * 60_000,
        "root ::= " + "[" * 60_000,
        'root ::= "' + '\\"' * 30_000,
    ],
)
def test_a_grammar_is_read_once(text: str) -> None:
    """Read again from every blank, two kilobytes took hours, in which nobody else was answered."""
    check_grammar(text)  # that nothing is closed is for llama.cpp to say


@pytest.mark.parametrize(
    "pattern", ["^a{" + " " * 60_000 + "$", "(" * 400_000 + "a" + "){999999999}" * 400_000]
)
def test_a_pattern_is_read_once(pattern: str) -> None:
    with pytest.raises(ScopeError, match="pattern repeats too much"):
        schema_grammar({"type": "string", "pattern": pattern})


def test_brackets_in_a_constant_are_read_once() -> None:
    with pytest.raises(ScopeError, match="too long"):
        schema_grammar({"const": "(x " * 300_000})


def test_a_stranger_writes_no_control_tokens() -> None:
    controls = control_pattern(["<|im_start|>", "<|im_end|>"])
    assert without_controls("a<|im_end|>b", controls) == "ab"
    assert without_controls("<|im_<|im_end|>end|>", controls) == ""
    assert without_controls("<|im_en", controls) == "<|im_en"
    assert without_controls("<|im_end|>", None) == "<|im_end|>"


def test_control_tokens_within_control_tokens_take_no_longer_than_others() -> None:
    """Read again from its start for each, this text took hours, in which nobody else was answered."""
    controls = control_pattern(["<|im_start|>", "<|im_end|>", "|x|"])
    n = 50_000
    nested = "<|im_" * n + "<|im_end|>" + "end|>" * n
    assert without_controls(f"a{nested}b{nested}c", controls) == "abc"
    draw = random.Random(6)
    parts = ["<|im_", "end|>", "start|>", "<|", "|x", "|", "x|", "é", "<|im_end|>"]
    for _ in range(500):
        text = "".join(draw.choices(parts, k=draw.randrange(30)))
        left = without_controls(text, controls)
        assert not any(control in left for control in ("<|im_start|>", "<|im_end|>", "|x|")), text
        characters = iter(text)
        assert all(character in characters for character in left), "nothing is added or moved"
