"""The serving benchmark runs, and its arms are what they are called. Nothing here looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import serving
from scope_runtime.bench import ARMS, ON


def test_quick(tmp_path: Path) -> None:
    """Eight policies are in flight: every steered answer is under one of its own."""
    small = ("--answer-tokens", "6", "--threads", "1", "--cache", str(tmp_path / "cache"))
    asked = ["--quick", "--engine", "embedded", "--out", str(tmp_path), *small]
    assert serving.main(asked) == 0
    found = json.loads((tmp_path / "serving-embedded.json").read_text())
    assert (found["policies"], found["features"], found["load"]["n_clients"]) == (8, 8, 8)
    assert [arm["name"] for arm in found["arms"]] == list(ARMS)
    for arm in found["arms"]:
        assert arm["interventions"] == [int(arm["name"] == ON)]
        assert arm["n_requests"] == 16
        assert arm["n_tokens"] > 0
