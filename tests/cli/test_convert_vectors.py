"""``scope convert vector``, ``contrast``, ``calibrate``, ``verify``: what a person types and sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from scope_runtime.cli.convert import app
from scope_runtime.cli.convert_vector import parse_layers
from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.llama import library
from scope_runtime.packs import read_pack
from scope_runtime.vectors import read_control_vector, write_control_vector
from tests.conftest import Tiny

library.load()


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").symlink_to(tiny.model)
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), tmp_path)
    (tmp_path / "p.txt").write_text("one fish\nred fish\n")
    (tmp_path / "n.txt").write_text("two birds\nblue birds\n")
    monkeypatch.chdir(tmp_path)


def convert(line: str) -> Result:
    return CliRunner().invoke(app, line.split(), env={"COLUMNS": "140"})


def data(line: str) -> Any:
    result = convert(line + " --json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_vector() -> None:
    result = convert("vector pack.gguf -f 2:5 --layers 2,4 --normalise --alpha 3 -o v.gguf")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:2] == ["layer 2: length 3", "layer 4: length 3"]
    assert f"sha256 {read_control_vector('v.gguf').digest}" in result.output


def test_vector_as_json() -> None:
    found = data("vector a=vector.gguf --combine 2*a --architecture x -o v.gguf")
    assert [each["layer"] for each in found["layers"]] == [1, 2, 3, 4]
    assert json.loads(found["metadata"]["scope.recipe"])["expression"] == "2*a"
    assert found["sha256"] == read_control_vector("v.gguf").digest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vector pack.gguf vector.gguf -f 2:5", "features are taken out of one source"),
        ("vector vector.gguf --layers 3", "--layers goes with --feature"),
        ("vector vector.gguf v2.gguf", "several vectors need --combine"),
        ("vector vector.gguf --combine vector/0", "has no place in an expression"),
        ("vector pack.gguf -f 2:5 --layers 4-2", "the layers run backwards"),
        ("contrast -m model.gguf --positive p.txt --negative n.txt --layers x", "cannot read"),
        ("contrast -m model.gguf --positive p.txt --negative none.txt", "no such file"),
    ],
)
def test_errors_are_left_to_the_root(line: str, message: str) -> None:
    result = convert(line + " -o out.gguf")
    assert isinstance(result.exception, ScopeError)
    assert message in str(result.exception)
    assert not Path("out.gguf").exists()


def test_contrast() -> None:
    line = "contrast -m model.gguf --positive p.txt --negative n.txt -o v.gguf -t 1 --layers 1-3"
    result = convert(line + " --method pca")
    assert result.exit_code == 0, result.output
    rows = [row.split() for row in result.output.splitlines()]
    assert rows[0] == ["layer", "length", "separation", "explained"]
    assert [row[:2] for row in rows[1:4]] == [["1", "1"], ["2", "1"], ["3", "1"]]
    found = data(line)
    assert [each["layer"] for each in found["layers"]] == [1, 2, 3]
    assert all(0 <= each["separation"] <= 1 for each in found["layers"])


def test_calibrate() -> None:
    result = convert("calibrate pack.gguf -m model.gguf --texts p.txt -t 1 -o out.gguf")
    assert result.exit_code == 0, result.output
    assert result.output.split()[:8] == [
        "layer", "id", "label", "fires", "mean", "max", "threshold", "precision",
    ]  # fmt: skip
    assert "out.gguf: " in result.output
    assert "2 texts" in result.output
    found = data("calibrate pack.gguf -m model.gguf --texts p.txt -t 1")
    assert found["n_texts"] == 2
    assert len(found["features"]) == 6 * 64
    assert set(found["features"][0]["threshold"]) == {"value", "precision", "recall", "n_chosen"}
    assert set(found["features"][0]["quantiles"]) == {"0.5", "0.9", "0.99"}
    assert found["sha256"] == read_pack("pack.gguf").digest == read_pack("out.gguf").digest


def test_verify() -> None:
    result = convert("verify vector.gguf -m model.gguf -t 1")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "vector.gguf: control vector"
    assert result.output.count("\nok ") == 5
    assert data("verify pack.gguf -m model.gguf -t 1")["ok"] is True


def test_verify_of_a_shifted_file() -> None:
    convert("vector pack.gguf -f 2:5 -o v.gguf")
    vector = read_control_vector("v.gguf")
    metadata = {key: value for key, value in vector.metadata if key.startswith("scope.")}
    write_control_vector("s.gguf", {3: np.array(vector.layers[2])}, metadata=metadata)
    result = convert("verify s.gguf -m model.gguf -t 1")
    assert result.exit_code == 1
    assert "FAILED  layers as recorded: shifted by 1:" in result.output
    result = convert("verify s.gguf -m model.gguf -t 1 --json")
    assert result.exit_code == 1
    assert json.loads(result.output)["ok"] is False


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("7", [7]), ("2-4", [2, 3, 4]), ("1, 3-4 ,9", [1, 3, 4, 9]), (None, None)],
)
def test_layers(text: str | None, wanted: list[int] | None) -> None:
    assert parse_layers(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "²", "1" * 5])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the layers"):
        parse_layers(text)
