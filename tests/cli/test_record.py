from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.cli.main import main
from scope_runtime.llama import library
from scope_runtime.llama.capture import capturing, residuals
from scope_runtime.recording import read_recording
from tests.conftest import Tiny

library.load()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the sun rises\na bird sings on the hill\n")
    return path


def test_record_writes_what_the_model_computes(
    tiny: Tiny, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.rec"
    arguments = ["record", "-m", tiny.model, "--prompts", prompts, "-o", out, "-n", 5]
    assert main([str(a) for a in [*arguments, "--raw", "--layers", "embedding,1,3", "--json"]]) == 0
    said = json.loads(capsys.readouterr().out)
    recording = read_recording(out)
    assert said["layers"] == ["embedding", "1", "3"]
    assert said["bytes"] == out.stat().st_size
    assert [text["n_tokens"] for text in said["texts"]] == [
        len(text.tokens) for text in recording.texts
    ]
    with capturing(tiny.model) as context:
        for text, prompt in zip(recording.texts, prompts.read_text().splitlines(), strict=True):
            assert text.tokens[: text.n_prompt] == tuple(context.tokenize(prompt, special=True))
            assert 0 < len(text.tokens) - (text.n_prompt or 0) <= 5
            (again,) = residuals(context, [text.tokens], [-1, 1, 3])
            for layer, h in again.layers.items():
                assert np.array_equal(text.layers[layer], h.astype(np.float16))


def test_a_policy_says_which_layers(
    tiny: Tiny, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.rec"
    arguments = ["record", "-m", tiny.model, "--prompts", prompts, "-o", out, "--raw"]
    assert main([str(a) for a in [*arguments, "--policy", tiny.policy]]) == 0
    assert capsys.readouterr().out.endswith("layers 1, 2\n")
    assert all(text.n_prompt == len(text.tokens) for text in read_recording(out).texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "1", "--policy", "p.yaml"], "--layers and --policy exclude each other"),
        (["--layers", "1,x"], "no layer; found 'x'; expected numbers and embedding, with commas"),
        (["--layers", "99"], "the model has no such layer; found 99; expected 0 to 4"),
    ],
)
def test_wrong_usage(
    options: list[str],
    message: str,
    tiny: Tiny,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "r.rec"
    arguments = ["record", "-m", tiny.model, "--prompts", prompts, "-o", out, "--raw", *options]
    assert main([str(a) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
