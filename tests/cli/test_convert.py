"""``scope convert``: what a person types and sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from scope_runtime.cli.convert import app
from scope_runtime.errors import ScopeError
from scope_runtime.packs import read_pack
from tests.support.raw_gguf import vector as raw_vector


@pytest.fixture(autouse=True)
def digests_are_remembered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def sae_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "sae"
    folder.mkdir()
    shapes = {"W_enc": (32, 8), "W_dec": (8, 32), "b_enc": (32,), "b_dec": (8,)}
    for layer in range(2):
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        torch.save(tensors, folder / f"layer{layer}.sae.pt")
    config = {"d_model": 8, "d_sae": 32, "k": 3, "num_layers": 2, "base_model": "Qwen/Tiny"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "120"})


def test_a_pack(sae_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.gguf"
    (tmp_path / "f.csv").write_text("layer,id,label\n1,9,[bold]nine\n")
    result = convert(
        "pack", sae_dir, "-f", "0:3=three", "--features", tmp_path / "f.csv", "--exact-gate", 0,
        "--architecture", "qwen3", "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.output.splitlines()[:3]] == [
        ["layer", "id", "label", "gate", "bytes"],
        ["0", "3", "three", "topk", "3", "1,220"],
        ["1", "9", "[bold]nine", "relu", "68"],
    ]
    assert "note: layer 1: top-3 gate without the full encoder: relu stands in" in result.output
    assert list(read_pack(out).layers) == [0, 1]


def test_a_pack_as_json(sae_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.gguf"
    result = convert("pack", sae_dir, "-f", "1:3", "--architecture", "qwen3", "-o", out, "--json")
    document: dict[str, Any] = json.loads(result.output)
    assert document["sha256"] == read_pack(out).digest
    assert document["layers"][0]["features"] == [{"id": 3, "label": ""}]
    assert document["layers"][0]["bytes"] == 68


def test_errors_are_left_to_the_root(sae_dir: Path, tmp_path: Path) -> None:
    result = convert("pack", sae_dir, "-f", "x", "--architecture", "qwen3", "-o", tmp_path / "p")
    assert isinstance(result.exception, ScopeError)
    assert str(result.exception) == "cannot read the feature; found 'x'; expected LAYER:ID=label"
    assert not (tmp_path / "p").exists()


def test_inspect(sae_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "v.gguf").write_bytes(raw_vector().to_bytes())
    result = convert("inspect", tmp_path / "v.gguf")
    assert "v.gguf: control vector" in result.output.replace("\n", "")
    document = json.loads(convert("inspect", sae_dir / "layer0.sae.pt", "--json").output)
    assert document["kind"] == "Qwen-Scope SAE of one layer"
    assert document["facts"]["gate"] == "top-3"
