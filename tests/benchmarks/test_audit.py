"""The audit log's benchmark runs, and what it writes is sound."""

from __future__ import annotations

import json

import pytest

from benchmarks.audit import main


def test_quick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--callers", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["records"] == 8 * 20 * 2
    assert found["sound"] is True
    assert 900 <= found["bytes_per_record"] <= 1100
    assert found["records_per_fsync"] > 2
