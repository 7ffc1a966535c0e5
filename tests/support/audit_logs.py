"""Audit logs to damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.note import SigningKey
from scope_runtime.audit.segments import LogFiles
from scope_runtime.events import Event, Kind

KEY = SigningKey("example.com/audit", bytes(range(32)))


def key_file(folder: Path) -> Path:
    path = folder / "audit.key"
    path.write_text(KEY.text + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def event(n: int, **detail: Any) -> Event:
    return Event(kind=Kind.RUNTIME, what=f"n{n}", time=1000.0 + n, detail=detail)


def request(n: int, policy: str = "english-only", rule: str = "mute-drift") -> list[Event]:
    """What a request leaves: one record of a rule, and its summary."""
    common: dict[str, Any] = {
        "kind": Kind.REQUEST,
        "time": 1000.0 + n,
        "request_id": f"r{n}",
        "labels": {"tenant": "acme" if n % 2 else "globex"},
    }
    detail = {"policy": policy, "n_fired": n, "dose": {"max": 0.1 * n, "mean": 0.05}}
    return [
        Event(what="rule", rule=rule, mode="enforce", detail=detail, **common),
        Event(what="summary", detail={"n_tokens": 10 * n, "finish_reason": "stop"}, **common),
    ]


def make_log(folder: Path, n_requests: int, **options: Any) -> LogFiles:
    """A signed and closed log."""
    options.setdefault("key", key_file(folder))
    log = AuditLog(AuditOptions(folder / "audit.jsonl", **options))
    for n in range(n_requests):
        log.write(request(n))
    log.close()
    return LogFiles(folder / "audit.jsonl")


def records_of(files: LogFiles) -> list[dict[str, Any]]:
    from scope_runtime.audit.segments import parse_line, read_lines

    found = []
    for path in files.segments():
        for line in read_lines(path):
            record = parse_line(line)
            assert record is not None, line
            found.append(record)
    return found
