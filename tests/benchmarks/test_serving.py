"""The serving benchmark runs, and its arms are what they are called. Nothing here looks at how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving
from scope_runtime.bench import AGAIN, ARMS, OFF, ON


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
        assert arm["n_requests"] == 32
        assert arm["n_tokens"] > 0
    assert 0 < found["hook_ms_per_answer_token"] < float("inf")


def test_against_llama_server_alone(tmp_path: Path) -> None:
    small = ("--answer-tokens", "6", "--threads", "1", "--cache", str(tmp_path / "cache"))
    asked = ["--quick", "--direct", "--out", str(tmp_path), *small]
    assert serving.main(asked) == 0
    found = json.loads((tmp_path / "serving-llama-server-direct.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == [serving.DIRECT, OFF, AGAIN]
    # What llama-server alone answers says nothing of policies.
    assert [arm["interventions"] for arm in found["arms"]] == [[], [0], [0]]
    assert "met" not in found
    with pytest.raises(SystemExit):
        serving.main([*asked, "--engine", "embedded"])
