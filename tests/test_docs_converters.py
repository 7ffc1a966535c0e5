"""docs/converters.md: every command is run, in order, on one artefact of each format."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_runtime.cli.convert import app
from scope_runtime.llama import library
from scope_runtime.packs import read_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.vectors import read_control_vector
from tests.conftest import ROOT, Tiny
from tests.support.published import publish

library.load()

PAGE = ROOT / "docs" / "converters.md"
COMMAND = re.compile(r"^\$ scope convert (.*)$", re.MULTILINE)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    publish(work, width=64, n_layer=5)
    for name in ("packs", "vectors"):
        (work / name).mkdir()
    (work / "model.gguf").symlink_to(tiny.model)
    (work / "features.csv").write_text("layer,id,label\n2,5,chinese\n2,9,\n")
    (work / "formal.txt").write_text("good morning, sir\ni would be delighted\nfarewell\n")
    (work / "casual.txt").write_text("hey you\nyeah why not\nsee you\n")
    (work / "sample.jsonl").write_text('"the sun rises"\n{"text": "a bird sings, a dog barks"}\n')
    monkeypatch.chdir(work)
    return work


def test_every_command_of_the_page_does_what_it_says(folder: Path) -> None:
    commands = COMMAND.findall(PAGE.read_text(encoding="utf-8"))
    assert len(commands) > 20
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command), env={"COLUMNS": "120"})
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
    packs = {path.stem: read_pack(path) for path in (folder / "packs").iterdir()}
    gates = {name: pack.layer(2).gate for name, pack in packs.items()}
    assert gates == {
        "qwen-scope": GateKind.RELU,
        "saelens": GateKind.RELU,
        "gemma-scope": GateKind.THRESHOLD,
        "gemma-scope-2": GateKind.THRESHOLD,
        "sparsify": GateKind.RELU,
        "llama-scope": GateKind.THRESHOLD,
        "dictionary-learning": GateKind.RELU,
        "exact": GateKind.TOPK,
        "small": GateKind.THRESHOLD,
    }
    assert packs["qwen-scope"].layer(3).labels == ("refusal",)
    assert packs["exact"].layer(2).stats is not None
    layers = {
        path.stem: list(read_control_vector(path).layers) for path in (folder / "vectors").iterdir()
    }
    assert layers == {
        "from-repeng": [1, 2],
        "from-easysteer": [2],
        "from-glp": [1, 4],
        "from-cast": [2, 3],
        "from-steering-vectors": [1, 3],
        "chinese": [2],
        "chinese-wide": [2, 3, 4],
        "from-pack": [2],
        "mixed": [1, 2, 3],
        "safe": [1, 2],
        "clear": [1, 2],
        "formal": [1, 2, 3, 4],
        "formal-pca": [2, 3],
    }
