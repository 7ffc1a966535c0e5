"""docs/seeing-inside.md: its commands are run in their order, and say what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
from scope_runtime.inspect.differences import least_p
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "seeing-inside.md").read_text(encoding="utf-8")
PLACES = {
    "chinese-places.txt": ("Zhihai", "Yanhua", "Kaichun", "Yugui", "Liuliang", "Beihai"),
    "english-places.txt": (
        "Oldham",
        "Bradville",
        "Oakburg",
        "Riverminster",
        "Montville",
        "Stonebury",
    ),
}


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"^\$ scope (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("policies", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, places in PLACES.items():
        asked = "".join(f"What can people see in the city of {place}?\n" for place in places)
        (tmp_path / name).write_text(asked)
    said = []
    for line in lines:
        # One thread: two wait for each other by spinning, which on a busy machine takes minutes.
        code = main([*shlex.split(line), "--threads", "1"])
        done = capsys.readouterr()
        assert code == 0, line + done.out + done.err
        said.append(done.out)
    strongest, chosen, pair, sets, steered, models = said
    assert strongest.startswith("\ntext: strongest features")
    [quoted] = re.findall(r"^```text\n(.*)\n```", PAGE, re.MULTILINE)
    assert chosen.splitlines()[0] == quoted
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "One text each: this describes what was read and no more." in pair
    assert re.search(r"Over 6 and 6 texts, [1-9]\d* of \d+ features differ", sets)
    assert "Features that differ most" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert re.search(r"Over 6 pairs of texts, \d+ of \d+ features differ", steered)
    assert "tiny-qwen3-f16" in models


def test_the_page_has_the_numbers_of_texts() -> None:
    assert least_p(4, 4, paired=False) <= 0.05 < least_p(3, 3, paired=False)
    assert least_p(6, 6, paired=True) <= 0.05 < least_p(5, 5, paired=True)
    assert "fewer than 4 on each side (6 where" in PAGE
