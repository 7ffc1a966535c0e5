"""The model's own answers: what they are, where a behaviour begins in them, and `find` on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.cli.main import main
from scope_runtime.errors import UsageError
from scope_runtime.inspect.answers import Answered, alike, answers, before, continued, pattern_of
from scope_runtime.llama.capture import capturing
from scope_runtime.llama.context import Context
from tests.inspect.conftest import MODEL, SAE

CHINESE = r"\s*[\u4e00-\u9fff]"
HELDOUT = json.loads((MODEL.parent / "heldout.json").read_text())


def questions(kind: str, n: int) -> list[str]:
    return [each["question"] for each in HELDOUT[kind][60 : 60 + n]]


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with capturing(MODEL, n_ctx=128, n_threads=1) as context:
        yield context


def text_of(context: Context, tokens: list[int]) -> str:
    return b"".join(map(context.piece, tokens)).decode()


def test_answers_are_the_runtime_s_and_are_cut_before_the_behaviour(context: Context) -> None:
    with Runtime(MODEL, n_ctx=128, n_threads=1) as runtime:
        asked = [runtime.tokenize_chat(question) for question in questions("fault", 3)]
        expected = [runtime.generate(each, max_tokens=60, temperature=0.0).text for each in asked]
    found = list(answers(context, asked, 60))
    for prompt, each, said in zip(asked, found, expected, strict=True):
        assert each.tokens[: each.n_prompt] == prompt
        assert text_of(context, each.tokens[each.n_prompt :]) == said
        cut = before(context, each, pattern_of(CHINESE))
        assert cut is not None
        kept = text_of(context, cut.tokens[cut.n_prompt :])
        assert kept == re.split(CHINESE, said, maxsplit=1)[0]
        assert kept.endswith(".")
        assert before(context, each, pattern_of("no such words")) is None


class Bytes:
    """A vocabulary of bytes."""

    @staticmethod
    def piece(token: int) -> bytes:
        return bytes([token])


def test_a_character_of_several_tokens_begins_with_its_first() -> None:
    answer = Answered([1, 2, *"a. 中文".encode()], 2)
    cut = before(Bytes(), answer, pattern_of("中"))  # type: ignore[arg-type]
    assert cut == Answered([1, 2, *b"a. "], 2)
    assert before(Bytes(), answer, pattern_of("a")) == Answered([1, 2], 2)  # type: ignore[arg-type]


def test_the_other_answer_stops_at_the_same_token_nearest_to_the_same_place() -> None:
    other = Answered([0, 7, 7, 7, 7, 9], 1)
    assert alike(Answered([0, 0, 9, 5, 5, 9, 5, 5, 5, 5, 9], 2), other).tokens == [0, 0, 9, 5, 5, 9]
    assert alike(Answered([0, 0, 5, 5, 5, 5, 5, 5], 2), other).tokens == [0, 0, 5, 5, 5, 5, 5]
    # Where the behaviour begins at once, only the prompt is left.
    assert alike(Answered([0, 0, 5, 9], 2), Answered([3, 9], 2)).tokens == [0, 0]


def test_a_text_goes_on_to_the_context_s_end_and_no_further(context: Context) -> None:
    n = context.n_ctx
    assert len(continued(context, [5] * (n - 8), 50, lambda row: 5)) == n
    with pytest.raises(UsageError, match=f"longer than the context; found {n + 1} tokens"):
        continued(context, [5] * (n + 1), 1, lambda row: 5)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return str(path)


def test_questions_alone_lead_to_what_the_model_does_in_its_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [
        "find", "-m", str(MODEL), "--sae", f"{SAE}:3", "--threads", "1", "--at", "last", "--json",
        "--positive", write(tmp_path / "a.jsonl", questions("fault", 20)),
        "--negative", write(tmp_path / "b.jsonl", questions("english", 20)), "--generate", "60",
    ]  # fmt: skip
    assert main([*base, "--until", CHINESE]) == 0
    said = json.loads(capsys.readouterr().out)
    first = said["groups"][0][0]
    assert first["feature"] == "3:843"
    assert first["significant"]
    left = 40 - sum(said["texts"][kind] for kind in ("positive", "negative"))
    assert any(note.startswith("left out: ") for note in said["notes"]) == (left > 0)
    assert main([*base, "--until", "no such words"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["message"] == "no answer shows the behaviour"
    assert error["found"].startswith("0 of 20 positive and 0 of 20 negative prompts show")


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["find", "-m", str(MODEL), "--sae", f"{SAE}:3", "--like", "a question"]
    assert main([*base, "--until", "x"]) == 2
    assert "--until is for answers" in capsys.readouterr().err
    assert main([*base, "--generate", "9"]) == 2
    assert "--generate needs --negative" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no regular expression"):
        pattern_of("(")
