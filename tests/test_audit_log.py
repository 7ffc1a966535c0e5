"""The JSONL log: whole lines, appended, and no word after a failure."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scope_runtime.audit import JsonlLog
from scope_runtime.errors import AuditError
from scope_runtime.events import Event, Kind


def event(n: int) -> Event:
    return Event(kind=Kind.RUNTIME, what=f"n{n}", time=float(n))


def test_two_logs_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "log.jsonl"
    first, second = JsonlLog(path), JsonlLog(path)
    for n in range(20):
        (first, second)[n % 2].write([event(n), event(100 + n)])
    first.close()
    second.close()
    whats = [json.loads(line)["what"] for line in path.read_text().splitlines()]
    assert whats == [f"n{m}" for n in range(20) for m in (n, 100 + n)]


def test_a_torn_last_line_is_closed_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"v":1}\n{"v":1,"ki')
    log = JsonlLog(path)
    log.write([event(1)])
    log.close()
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"v":1}', '{"v":1,"ki']
    assert json.loads(lines[2])["what"] == "n1"


def test_a_failed_write_is_an_error_and_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(AuditError, match="Input/output error"):
        log.write([event(1)])
    monkeypatch.undo()
    with pytest.raises(AuditError, match="failed before"):
        log.write([event(2)])
    log.close()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be opened"):
        JsonlLog(tmp_path / "file" / "log.jsonl")
