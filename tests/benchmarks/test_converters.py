"""The converters' benchmark runs; of its figures, those that do not depend on the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import converters


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    assert converters.main(["--quick", "--out", str(out), "--scratch", str(tmp_path)]) == 0
    results = json.loads((out / "converters.json").read_text())
    assert [row["ours"] for row in results["rows"]] == [True, False, True, False]
    assert capsys.readouterr().out.count("| pt |") == 2
    assert [each.name for each in tmp_path.iterdir()] == ["results"]


def test_ten_features_of_a_middling_layer_are_read_alone(tmp_path: Path) -> None:
    """Of a 268 MB layer; the benchmark itself takes 3.4 GB."""
    size = converters.Size(8_192, 4_096)
    converters.make_pt(tmp_path / "pt", size)
    found = converters.child(Path(sys.executable), 0, tmp_path, size.d_sae)
    wanted = converters.needed(converters.CASES[0], size)
    assert found["read_bytes"] <= 3 * wanted["rows_bytes"]
    assert found["peak_bytes"] < 60e6


def test_the_readmes_section(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{converters.BEGIN}\nold\n{converters.END}\nb\n")
    converters.write_section(readme, "new")
    assert readme.read_text() == f"a\n{converters.BEGIN}\n\nnew\n\n{converters.END}\nb\n"
