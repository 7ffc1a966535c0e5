"""Golden files: what a program draws, held against what was looked at and kept."""

from __future__ import annotations

import difflib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "golden"


def assert_golden(name: str, found: str) -> None:
    """Holds a text against the file of that name. A different one is written in its place, and the test fails:
    look at what changed, and run it again."""
    path = FOLDER / name
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    if found == kept:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found, encoding="utf-8")
    change = difflib.unified_diff(
        kept.splitlines(), found.splitlines(), "kept", "found", lineterm="", n=1
    )
    raise AssertionError(f"{path} was written anew:\n" + "\n".join(list(change)[:60]))
