"""The benchmark of whole layers runs, and its figures are what they are called."""

from __future__ import annotations

import json

import pytest

from benchmarks.sae import figures, main


def test_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    [layer] = found["layers"]
    for arm in layer["top-k other than PyTorch's"].values():
        # 50 of 512 random numbers of size 1: none are equal to within rounding.
        assert arm == {"n_compared": 128, "n_differ": 0, "largest_gap": 0.0}
    for n_tokens in (1, 64):
        arms = layer[f"{n_tokens} tokens"]
        assert {"PyTorch F32", "F32 file", "F16 file", "BF16 file"} <= set(arms)
        assert all(arm["ms"] > 0 for name, arm in arms.items() if name != "memory")


def test_figures() -> None:
    times = {
        "reading the F32 rows": [[0.010]] * 4,
        "PyTorch F32": [[0.012]] * 4,
        "F32 file": [[0.0125]] * 4,
        "F16 file": [[0.006]] * 4,
    }
    found = figures(times, 200_000_000, 1)
    assert found["memory"] == {"gb_per_s": 20.0, "n_rounds": 4}
    assert found["F32 file"]["of_the_limit"] == pytest.approx(0.8)
    assert found["F16 file"]["of_the_limit"] == pytest.approx(0.833, abs=1e-3)
    assert found["F16 file"]["times_pytorch_f32"] == pytest.approx(2.0)
    assert found["F16 file"]["tokens_per_s"] == pytest.approx(166.7)
