"""Texts that the model makes up, and `find` with nothing else to hold a few texts against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters.texts import Text, read_texts
from scope_runtime.cli.main import main
from scope_runtime.errors import UsageError
from scope_runtime.inspect import Criteria, Pool, find, rank
from scope_runtime.inspect.background import own_texts
from scope_runtime.inspect.kinds import encoded
from scope_runtime.inspect.rank import fewest
from scope_runtime.inspect.texts import prompts_and_answers
from scope_runtime.llama.capture import capturing
from scope_runtime.llama.context import Context
from scope_runtime.sae import SaeLayers
from tests.inspect.conftest import MODEL, SAE

SEEDS = MODEL.parent / "seeds"
ASSISTANT = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with capturing(MODEL, n_ctx=256, n_threads=1) as context:
        yield context


def words(context: Context, tokens: list[int]) -> str:
    return b"".join(context.piece(token, special=True) for token in tokens).decode(errors="replace")


def test_own_texts_have_the_shape_of_those_given(context: Context) -> None:
    asked = prompts_and_answers(context, read_texts(SEEDS / "archaic.positive.jsonl"))
    cut = prompts_and_answers(context, read_texts(SEEDS / "drift.positive.jsonl"))
    questions = [words(context, each) for each in own_texts(context, asked, chat=True, n=6)]
    answers = [words(context, each) for each in own_texts(context, cut, chat=True, n=6)]
    for text in questions:
        assert text.startswith("<|im_start|>")
        assert text.endswith(ASSISTANT)
        assert text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0].strip()
    said = [text.partition(ASSISTANT)[2] for text in answers]
    assert all(said)
    # They end at a full stop as the given ones do; an answer without one is left whole.
    assert all(each.endswith(".") or "." not in each for each in said)
    assert sum(each.endswith(".") for each in said) >= 3
    assert len(set(questions)) > 1


def test_the_same_seed_makes_the_same_texts(context: Context) -> None:
    plain = [([1, 2, 3, 4, 5, 6, 7, 8], [])]
    one, again, other = (
        list(own_texts(context, plain, chat=False, n=4, seed=seed)) for seed in (3, 3, 4)
    )
    assert one == again != other
    assert all(1 < len(text) <= 9 for text in one)


def test_a_model_that_makes_up_no_question_is_told(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "ends", lambda token: True)
    with pytest.raises(UsageError, match=r"makes up no question.*Give --negative"):
        next(own_texts(context, [([1], [2])], chat=True))


def test_of_two_sets_of_own_texts_nothing_is_significant(context: Context) -> None:
    """However they are drawn: the texts have their seeds, and nothing else parts them."""
    like = prompts_and_answers(context, read_texts(SEEDS / "drift.positive.jsonl"))
    one, two = (list(own_texts(context, like, chat=True, n=20, seed=seed)) for seed in (1, 2))
    read = encoded(context, SaeLayers.open(SAE), one, two, ahead=True)
    for at, ahead in ((Pool.LAST, read.ahead), (Pool.MAX, None)):
        assert not rank(read.pooled(at), read.positive, ahead=ahead).significant


@pytest.mark.parametrize(("name", "feature"), [("archaic", "2:459"), ("drift", "3:843")])
def test_without_negatives_the_known_features_come_first(name: str, feature: str) -> None:
    found = find(
        MODEL, f"{SAE}:2,3", read_texts(SEEDS / f"{name}.positive.jsonl"), at="last", n_threads=1
    )
    assert found.own
    assert (found.n_positive, found.n_negative) == (20, 40)
    [known] = [each for each in found.features[:5] if each.name == feature]
    assert found.is_significant(known)


def test_how_many_seeds_something_can_be_said_of() -> None:
    assert fewest(40) == 4
    assert fewest(10) == 10
    assert fewest(9) is not None
    assert fewest(1) is None
    assert fewest(40, Criteria(false_alarm_rate=0.2)) == 2


def test_of_three_seeds_there_is_an_order_and_no_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (SEEDS / "archaic.positive.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "three.jsonl").write_text("".join(lines[:3]))
    base = ["find", "-m", str(MODEL), "--sae", f"{SAE}:2", "--threads", "1", "--json"]
    assert main([*base, "--positive", str(tmp_path / "three.jsonl"), "--at", "last"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == (
        "exploratory: too few texts to hold a half out (4 would do against these 40); the ranking is "
        "on the texts that chose it, and nothing is called significant"
    )
    assert said["texts"] == {"positive": 3, "negative": 40, "own": True}
    assert said["groups"]
    assert not any(each["significant"] for group in said["groups"] for each in group)


def test_seeds_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["find", "-m", str(MODEL), "--sae", f"{SAE}:2", "--threads", "1"]
    assert main([*base, "--like", "Verily, the town is fair.", "--like", "Lo, it is old."]) == 3
    assert "2 positive and 40 texts of the model itself" in capsys.readouterr().out
    assert main(base) == 2
    assert "say what to look for; expected --positive FILE" in capsys.readouterr().err
    both = ["--like", "x", "--positive", str(SEEDS / "archaic.positive.jsonl")]
    assert main([*base, *both]) == 2


def test_a_text_alone_is_a_seed_too() -> None:
    found = find(MODEL, f"{SAE}:3", [Text("The garden is green.")], at="mean", n_threads=1)
    assert not found.ranking.held_out
    assert found.features
