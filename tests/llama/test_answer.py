"""What an answer is asked to be: scores, stop texts, grammars, penalties; against numpy on the model's logits."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from llama_cpp.llama_grammar import json_schema_to_gbnf

from scope_runtime import Runtime
from scope_runtime.errors import UsageError
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.engine import Generation
from scope_runtime.llama.grammar import MAX_NESTING, schema_grammar
from scope_runtime.runtime import GenerateOptions
from tests.conftest import ROOT

PROMPT = "the sea is"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    model = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
    with Runtime(model, n_ctx=512, n_threads=1) as open_runtime:
        yield open_runtime


def test_scores_are_the_log_softmax_of_the_logits_they_were_drawn_from(runtime: Runtime) -> None:
    prompt = runtime.tokenize(PROMPT)
    answer = runtime.generate(prompt, max_tokens=6, temperature=0.0, top_logprobs=3)
    tokens = [*prompt, *answer.tokens]
    logits = runtime.logits(tokens, n_prompt=len(prompt)).astype(np.float64)
    assert len(answer.scores) == len(answer.tokens) == 6
    for i, score in enumerate(answer.scores):
        row = logits[len(prompt) - 1 + i]
        expected = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        best = np.argsort(-expected)[:3]
        assert score.token == answer.tokens[i] == best[0]
        assert [each.token for each in score.top] == list(best)
        # One token at a time and all at once: the same to what batching itself changes.
        assert [each.logprob for each in score.top] == pytest.approx(list(expected[best]), abs=0.02)


def test_as_many_scores_as_the_vocabulary_has_may_be_asked_for(runtime: Runtime) -> None:
    answer = runtime.generate(PROMPT, max_tokens=1, temperature=0.0, top_logprobs=0)
    assert [score.top for score in answer.scores] == [()]


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(runtime: Runtime) -> None:
    whole = runtime.generate(PROMPT, max_tokens=24, temperature=0.0)
    stop = whole.text[9:14]
    pieces: list[str | Generation] = list(
        runtime.generate(
            PROMPT, max_tokens=24, temperature=0.0, stop=(stop,), top_logprobs=0, stream=True
        )
    )
    last = pieces.pop()
    assert isinstance(last, Generation)
    assert last.finish_reason == "stop"
    assert last.text == "".join(map(str, pieces)) == whole.text[: whole.text.index(stop)]
    assert len(last.tokens) < len(whole.tokens)
    told = [score for piece in pieces if isinstance(piece, Piece) for score in piece.scores]
    assert tuple(told) == last.scores
    # A token that reaches into the stop text is not told.
    assert last.text.startswith(b"".join(score.data for score in told).decode())


def test_a_grammar_holds_and_a_seed_repeats_it(runtime: Runtime) -> None:
    grammar = 'root ::= ("yes" | "no") [0-9]{3}'
    answers = [
        runtime.generate(PROMPT, max_tokens=20, temperature=1.5, seed=5, grammar=grammar)
        for _ in range(2)
    ]
    assert answers[0].tokens == answers[1].tokens
    text = answers[0].text
    assert text.removeprefix("yes").removeprefix("no").isdigit()
    assert len(text) in (5, 6)
    assert answers[0].finish_reason == "stop"


def test_a_schema_becomes_a_grammar(runtime: Runtime) -> None:
    grammar = schema_grammar(
        {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
            "required": ["n", "ok"],
            "additionalProperties": False,
        }
    )
    answer = runtime.generate(PROMPT, max_tokens=64, temperature=1.0, seed=1, grammar=grammar)
    assert answer.finish_reason == "stop"
    read = json.loads(answer.text)
    assert type(read["n"]) is int
    assert type(read["ok"]) is bool


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ('root ::= "a', "the grammar cannot be read"),
        ('other ::= "a"', "the grammar cannot be read"),
        ("root ::= root", "the grammar cannot be read"),
        ("root ::= " + "(" * 60_000, "nested too deeply"),
        ("root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING, None),
        ('root ::= "a"? ' + '"a"? ' * 200, "the grammar leaves too much open"),
        ('b ::= "a"{0,900}\nroot ::= b{0,900}', "repeats what may be empty too often"),
        ('root ::= (("x" | "a"*){0,90} | "y"){0,90}', "repeats what may be empty too often"),
        ('b ::= "x" "a"{0,90}\nroot ::= b{0,90}', None),
        ("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(300)), "too deeply"),
        ('root ::= "a"{99999999999999999999}', "repeats a part too often"),
        ('root ::= "a"{0,2001}', "repeats a part too often"),
        ('root ::= "' + "a" * 70_000 + '"', "the grammar is too long"),
        ("", None),
    ],
)
def test_a_grammar_that_llama_cpp_must_not_see_is_refused(
    runtime: Runtime, grammar: str, says: str | None
) -> None:
    before = len(runtime.events())
    if says is None:
        runtime.generate(PROMPT, max_tokens=2, temperature=0.0, grammar=grammar)
        return
    with pytest.raises(UsageError, match=says):
        runtime.generate(PROMPT, max_tokens=2, temperature=0.0, grammar=grammar)
    assert len(runtime.events()) == before


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"pattern": "("}])
def test_a_schema_that_cannot_be_expressed_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="JSON schema cannot be turned"):
        schema_grammar({"type": "string", **schema})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 3},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        {"type": "array", "items": {"enum": ["a", "(b"]}, "minItems": 1, "maxItems": 4},
        {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2},
        {"type": "string", "pattern": "^[a-c]{0,4}(x|yz){1,3}$"},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}}},
    ],
)
def test_repetitions_by_count_draw_what_those_written_out_draw(
    runtime: Runtime, schema: dict[str, object]
) -> None:
    written_out = json_schema_to_gbnf(json.dumps(schema))
    for seed in range(4):
        options: GenerateOptions = {"max_tokens": 24, "temperature": 1.5, "seed": seed}
        one, other = (
            runtime.generate(PROMPT, grammar=grammar, **options)
            for grammar in (schema_grammar(schema), written_out)
        )
        assert one.tokens == other.tokens


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 2000},
        {"type": "string", "minLength": 500, "maxLength": 1000},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 1000},
        {"type": "string", "pattern": "^[0-9]{1,1000}$"},
    ],
)
def test_long_repetitions_are_held(runtime: Runtime, schema: dict[str, object]) -> None:
    answer = runtime.generate(
        PROMPT, max_tokens=8, temperature=1.0, seed=1, grammar=schema_grammar(schema)
    )
    assert answer.finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"maxLength": 2001}, "counts further than a grammar can"),
        ({"type": "array", "items": {"items": {}, "maxItems": 10**9}}, "counts further"),
        ({"pattern": "^a{0,2001}$"}, "counts further"),
        ({"pattern": "^((a{1000}){1000}){1000}$"}, "repeats too much"),
        ({"anyOf": [{"type": "string", "pattern": "^[ab]{1000000000}$"}]}, "repeats too much"),
    ],
)
def test_repetitions_that_cannot_be_held_are_refused_before_they_are_written_out(
    schema: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        schema_grammar({"type": "string", **schema})


def test_what_a_grammar_would_not_hold_is_refused() -> None:
    schema = {"type": "object", "properties": {"minimum": {"type": "integer", "minimum": 3}}}
    with pytest.raises(UsageError, match="would not hold; found minimum"):
        schema_grammar(schema)
    schema_grammar({"type": "object", "properties": {"minimum": {"type": "integer"}}})


def test_a_bias_and_a_penalty_change_the_draw(runtime: Runtime) -> None:
    plain = runtime.generate(PROMPT, max_tokens=1, temperature=0.0)
    (first,) = plain.tokens
    banned = runtime.generate(PROMPT, max_tokens=1, temperature=0.0, logit_bias={first: -100.0})
    assert banned.tokens != plain.tokens
    forced = runtime.generate(PROMPT, max_tokens=8, temperature=0.0, logit_bias={first: 100.0})
    assert set(forced.tokens) == {first}
    row = runtime.logits(runtime.tokenize(PROMPT))[-1]
    gap = float(np.sort(row)[-1] - np.sort(row)[-2])
    # Once it was said, a presence penalty takes 2 of the 1 + gap by which the forced token leads.
    pushed = runtime.generate(
        PROMPT, max_tokens=1, temperature=0.0, logit_bias={first: 1.0}, presence_penalty=2.0
    )
    assert pushed.tokens == (first,)
    assert gap > 0
    said = runtime.generate(
        PROMPT, max_tokens=30, temperature=0.0, frequency_penalty=2.0, logit_bias={first: 12.0}
    )
    assert 1 < said.tokens.count(first) < 30


def test_a_token_that_the_model_has_not_cannot_be_biased(runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="logit_bias names a token"):
        runtime.generate(PROMPT, logit_bias={10**6: 1.0})


def test_began_tells_the_program_and_the_first_revision(runtime: Runtime) -> None:
    told = []
    answer = runtime.generate(
        PROMPT,
        max_tokens=3,
        temperature=0.0,
        began=lambda program, revisions: told.append((program.revision, revisions)),
    )
    assert told == [("none", answer.revisions)]
