"""The benchmark of the exact gate runs, and its gates are open and closed as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate import CLOSED, OPEN, main, write_files
from scope_runtime.sae import SaeLayers


def test_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["arms"]) == {"no hook", "no hook again", "gate closed", "gate open"}
    assert found["arms"]["no hook"]["median"] == 1
    assert all(arm["ms_per_token"] > 0 for arm in found["arms"].values())


def test_one_gate_is_always_open_and_the_other_never(tmp_path: Path) -> None:
    write_files(tmp_path, "qwen3", 2, 32, 256)
    layer = SaeLayers.open(tmp_path / "pack.gguf").layer(1)
    h = 100 * np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    values = layer.values(h, [OPEN, CLOSED])
    assert (values[:, 0] > 0).all()
    assert (values[:, 1] == 0).all()
