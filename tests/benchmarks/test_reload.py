"""The reload benchmark runs and checks every token. Nothing here looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import reload


def test_quick(tmp_path: Path) -> None:
    """Behaviour 11: no token under a revision that was not in place, no failed generation."""
    assert reload.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "reload.json").read_text())
    assert found["reloads"] >= 3
    assert found["tokens"] > 0
    assert (found["tokens_under_a_wrong_revision"], found["failed_generations"]) == (0, 0)
