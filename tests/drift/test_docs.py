"""docs/drift.md: its commands are run in their order, on the example model; drifting traffic is told from the same."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples" / "tiny-qwen3"))

import traffic

PAGE = (ROOT / "docs" / "drift.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 9
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "130")
    # Shorter answers than the page's picture is drawn from: the traffic is as different, and made in less time.
    monkeypatch.setattr(traffic, "MAX_TOKENS", 14)
    (tmp_path / "policies").symlink_to(ROOT / "policies")
    said: list[tuple[str, str]] = []
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        expected = re.search(r"# exit code (\d)", line)
        if command == "python":
            monkeypatch.setattr(sys, "argv", words)
            traffic.main()
        else:
            code = main(words)
            done = capsys.readouterr()
            assert code == int(expected[1] if expected else 0), line + done.out + done.err
            said.append((line, done.out))
    assert "baseline.json: 200 requests, 1 rules" in said[0][1]
    assert "stable: 150 requests against 200" in said[2][1]
    assert "drift: 150 requests against 200" in said[3][1]
    assert json.loads(said[4][1])["verdict"] == "drift"
    assert "insufficient: 60 requests against 200" in said[5][1]
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_defaults() -> None:
    from scope_runtime.drift import Criteria, Window

    window, criteria = Window(), Criteria()
    assert f"requests: {window.requests}, hours: {window.hours:g}, looks: {window.looks}" in PAGE
    for name in ("min_requests", "false_alarm_rate", "psi"):
        assert f"    {name}: {getattr(criteria, name):g}\n" in PAGE
