"""docs/testing-policies.md and docs/bundles.md: every command is run, in order, on the shipped policies."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from scope_runtime.cases.load import load_test
from scope_runtime.cli.main import main
from scope_runtime.llama import library
from tests.conftest import ROOT

library.load()

COMMAND = re.compile(r"^\$ scope (.*)$", re.MULTILINE)
MODEL = Path("examples/tiny-qwen3/tiny-qwen3-q8_0.gguf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    (tmp_path / MODEL).parent.mkdir(parents=True)
    (tmp_path / MODEL).symlink_to(ROOT / MODEL)
    (tmp_path / "model.gguf").symlink_to(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["testing-policies", "bundles"])
def test_every_command_of_the_page_does_what_it_says(
    page: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = (folder / "policies" / "english-only.yaml").read_text()
    (folder / "packs").symlink_to("policies/packs")
    (folder / "new.yaml").write_text(
        policy.replace("mute: drift", "scale: drift\n      factor: 0.5")
    )
    commands = COMMAND.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert len(commands) >= 6
    said = {}
    for command in commands:
        code = main(shlex.split(command.partition(" > ")[0]))
        out = capsys.readouterr()
        assert code == 0, f"{command}\n{out.out}\n{out.err}"
        said[command] = out.out
    if page == "bundles":
        assert any("signed   by" in text for text in said.values())
        assert (Path(said[commands[-1]].strip()) / "english-only.yaml").read_text() == policy
    else:
        assert (folder / "my.rec").stat().st_size > (folder / "small.rec").stat().st_size
        assert (folder / "report.xml").is_file()


def test_the_pages_test_file_is_one(folder: Path) -> None:
    page = (ROOT / "docs" / "testing-policies.md").read_text(encoding="utf-8")
    block = re.search(r"^```yaml test\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    path = folder / "policies" / "page.test.yaml"
    path.write_text(block[1], encoding="utf-8")
    assert len(load_test(path).cases) == 2
    assert main(["test", str(path)]) == 0
    assert main(["fmt", "--check", str(path)]) == 0
