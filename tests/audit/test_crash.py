"""Behaviour 29: EIO or kill -9 at any system call loses no acknowledged record."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def test_29_a_log_that_is_broken_at_its_system_calls(root: Path) -> None:
    """Every seventh point; ``scripts/crash-audit`` alone tries them all."""
    done = subprocess.run(
        [root / "scripts" / "crash-audit", "--short"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) injection points, (\d+) hit, 0 where", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) == int(found[2]) >= 30
