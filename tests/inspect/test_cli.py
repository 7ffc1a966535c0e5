"""``scope trace`` and ``scope compare`` as a person calls them, on the example model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope_runtime import Runtime
from scope_runtime.cli.main import main
from scope_runtime.llama import library
from tests.inspect.conftest import ENGLISH_ONLY, F16, MODEL, PACK, QUESTION, RECORDING, SAE

library.load()

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code, capsys.readouterr()
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def trace(call: Call, *words: object) -> Any:
    return json.loads(call("trace", "-m", MODEL, "-s", PACK, "-t", 1, "--json", *words))


def test_an_answer_is_traced_while_it_is_generated(call: Call, tmp_path: Path) -> None:
    html, png = tmp_path / "t.html", tmp_path / "t.png"
    said = trace(
        call,
        *(
            "--text",
            QUESTION,
            "-n",
            30,
            "--features",
            "drift-a,2:685",
            "--html",
            html,
            "--png",
            png,
        ),
    )
    [text] = said["texts"]
    drift, refusal = text["features"]
    assert (drift["layer"], drift["id"], drift["label"]) == (3, 767, "drift-a")
    first = drift["first_in_answer"]
    assert text["tokens"][first["position"]]["text"] == "."
    assert first["about_to_say"][0]["text"] == " "
    assert first["activation"] == drift["activations"][first["position"]] > 100
    assert refusal["first"] is None
    assert len(drift["activations"]) == text["n_tokens"] == len(text["tokens"])
    assert "".join(each["text"] for each in text["tokens"]) == text["text"]
    assert "游" in text["text"]
    assert "drift-a" in html.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_under_a_policy_the_answer_is_another_one(call: Call) -> None:
    [text] = trace(call, "--text", QUESTION, "-n", 30, "-P", ENGLISH_ONLY)["texts"]
    assert text["policy_revision"].startswith("sha256:")
    assert not any("\u4e00" <= letter <= "\u9fff" for letter in text["text"])


def test_a_text_as_it_stands_and_what_is_strongest(call: Call) -> None:
    said = call(
        "trace", "-m", MODEL, "-s", f"{SAE}:3", "-t", 1, "--text", "The sun rises.", "--top", 3
    )
    title, head, *rows = said.strip().splitlines()
    assert title == "text: strongest features"
    assert head.split() == ["token", "strongest", "features"]
    assert [row.split()[1] for row in rows] == ["The", "␣s", "un", "␣r", "is", "es", "."]
    assert all(row.count("3:") == 3 and len(row) <= 80 for row in rows)


def test_texts_of_a_file(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('"a b"\n{"messages": [{"role": "user", "content": "c"}]}\n')
    one, two = trace(call, "--file", file, "--top", 1)["texts"]
    assert (one["name"], one["text"]) == ("text 0", "a b")
    assert two["text"].startswith("<|im_start|>user\nc<|im_end|>")
    assert all(len(token["strongest"]) == 1 for token in two["tokens"])


def test_a_logged_request(call: Call, tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: keep}\n"
        "spec: {rules: [], audit: {prompts: keep, outputs: keep}}\n"
    )
    log = tmp_path / "audit.jsonl"
    with Runtime(MODEL, policy, audit=log, n_ctx=128, n_threads=1) as runtime:
        answer = runtime.chat(QUESTION, max_tokens=20, temperature=0.0, request_id="r7")
    [text] = trace(call, "--request", "r7", "--log", log, "--features", "drift-a")["texts"]
    assert text["name"] == "request r7"
    assert text["text"].endswith(answer.text)
    assert text["features"][0]["first_in_answer"]["position"] == 36


def test_a_recording_without_a_model_and_with_its_words(call: Call) -> None:
    plain = json.loads(call("trace", "-s", PACK, "-r", RECORDING, "--features", "3:767", "--json"))
    named = trace(call, "-r", RECORDING, "--features", "3:767")
    assert [each["features"] for each in plain["texts"]] == [
        each["features"] for each in named["texts"]
    ]
    assert plain["texts"][0]["tokens"][3]["text"].startswith("#")
    assert "Zhihai" in named["texts"][0]["text"]
    refused = call("trace", "-m", F16, "-s", PACK, "-r", RECORDING, code=2)
    assert "the recording is of another model" in refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-m", MODEL],
            "say what to trace; expected one of --text, --file, --request, --recording",
        ),
        (["-m", MODEL, "--text", "a", "-r", "b"], "say what to trace"),
        (["--text", "a"], "no model is given. Give --model FILE"),
        (["-m", MODEL, "--request", "a"], "--request and --log go together"),
        (["-r", RECORDING, "-n", "3"], "--generate is for --text and --file"),
        (["-r", RECORDING, "-P", ENGLISH_ONLY], "a recording is of an unsteered model"),
        (["-m", MODEL, "--text", ""], "the text is empty"),
    ],
)
def test_what_cannot_be_traced(call: Call, words: list[object], message: str) -> None:
    assert call("trace", "-s", PACK, *words, code=2).startswith(f"error: {message}")


def test_saes_of_another_model_are_refused_before_it_is_loaded(call: Call, tiny: Any) -> None:
    refused = call("trace", "-m", tiny.model, "-s", PACK, "--text", "a", code=1)
    assert "the SAEs are not of this model" in refused


def compare(call: Call, *words: object) -> Any:
    return json.loads(call("compare", "-m", MODEL, "-s", PACK, "-t", 1, "--json", *words))


def test_two_answers(call: Call, tmp_path: Path) -> None:
    html, png = tmp_path / "c.html", tmp_path / "c.png"
    said = compare(
        call, QUESTION, QUESTION.replace("Zhihai", "Oldham"), "-n", 30, "--html", html, "--png", png
    )
    assert (said["test"], said["paired"]) == (None, False)
    a, b = said["a"]["texts"][0], said["b"]["texts"][0]
    assert "游" in a["text"]
    assert "游" not in b["text"]
    assert a["name"] == "answer of text 0"
    assert said["words"][-1].startswith("One text each: this describes what was read and no more.")
    assert html.exists()
    assert png.exists()
    for each in said["differences"]:
        assert abs(each["a"] - each["b"]) > 1


def test_two_files_are_judged(call: Call, tmp_path: Path) -> None:
    for name, city in (
        ("chinese", ["Zhihai", "Jiaqing", "Yanhua", "Kaichun", "Yugui"]),
        ("english", ["Oldham", "Bradville", "Oakburg", "Riverminster", "Montville"]),
    ):
        lines = [f"What can people see in the city of {each}?\n" for each in city]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    files = ["--file", tmp_path / "chinese.txt", "--file", tmp_path / "english.txt"]
    said = compare(call, *files, "-n", 40, "--top", 5)
    assert said["test"]["exact"]
    assert said["test"]["arrangements"] == 252
    assert said["test"]["significant"] >= 5
    assert all(each["p"] <= 0.05 and each["effect"] < 0 for each in said["differences"])
    shown = call("compare", "-m", MODEL, "-s", PACK, "-t", 1, *files, "-n", 4, "--at", "max")
    assert "max activation of each text" in shown


def test_with_and_without_a_policy(call: Call) -> None:
    said = compare(call, QUESTION, "-P", ENGLISH_ONLY, "-n", 30)
    assert (said["a"]["name"], said["b"]["name"], said["paired"]) == ("unsteered", "steered", True)
    assert said["a"]["texts"][0]["policy_revision"] is None
    assert said["b"]["texts"][0]["policy_revision"].startswith("sha256:")
    assert "游" in said["a"]["texts"][0]["text"]
    assert "游" not in said["b"]["texts"][0]["text"]


def test_two_quantisations(call: Call) -> None:
    said = compare(call, QUESTION, "--against", F16)
    assert (said["a"]["name"], said["b"]["name"]) == ("tiny-qwen3-q8_0", "tiny-qwen3-f16")
    assert said["same_tokens"]
    assert said["a"]["texts"][0]["text"] == QUESTION


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to compare; expected one or two texts, or one or two --file"),
        (["a", "b", "c"], "say what to compare"),
        (["a", "--file", "b"], "say what to compare"),
        (
            ["a"],
            "there is nothing to compare the text with; expected a second text, or one of "
            "--against MODEL and --policy FILE",
        ),
        (["a", "--against", F16, "-P", ENGLISH_ONLY], "there is nothing to compare the text with"),
        (["a", "b", "--at", "least"], "--at is none; found 'least'; expected max, mean, last"),
        (["a", "b", "--against", F16], "--against takes one text or file"),
    ],
)
def test_what_cannot_be_compared(call: Call, words: list[object], message: str) -> None:
    refused = call("compare", "-m", MODEL, "-s", PACK, *words, code=2)
    assert refused.startswith(f"error: {message}")
