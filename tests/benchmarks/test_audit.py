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


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Little of it: what is kept in memory, what is in the log, that nothing is lost."""
    assert main(["--memory", "--quick"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["dropped"]) == (True, 0)
    assert found["records"] > found["events"] == 5000
    assert len(found["rss_mb"]) == 11


def test_token_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--token-path", "--quick", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["token_ratio"]) == {"off again", "on"}
    assert all(median > 0 for median, *_ in found["token_ratio"].values())
