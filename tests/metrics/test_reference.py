"""docs/observability.md is what the table of metrics says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scope_runtime.metrics import reference
from scope_runtime.metrics.families import FAMILIES


def test_the_page_is_up_to_date() -> None:
    assert reference.main(["--check"]) == 0


def test_every_metric_has_its_row() -> None:
    rows = [line for line in reference.render().splitlines() if line.startswith("| `scope_")]
    named = [row.split("`")[1] for row in rows]
    assert sorted(set(named) & {f.name for f in FAMILIES}) == sorted(f.name for f in FAMILIES)


def test_an_old_page_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "observability.md"
    page.write_text("old", encoding="utf-8")
    monkeypatch.setattr(reference, "PAGE", page)
    assert reference.main(["--check"]) == 1
    assert "write it with `make docs`" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert reference.main(["--chekc"]) == 2
