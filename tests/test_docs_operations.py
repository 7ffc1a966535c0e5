"""docs/operations.md: its commands are run, in their order, against a process that runs as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Tiny
from tests.lifecycle.conftest import until

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
HOST = "scope host scope.yaml < prompts"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_runbook_runs(tiny: Tiny, tmp_path: Path) -> None:
    """Behaviours 9 to 21 as an operator goes through them; every command must do its work."""
    shutil.copy(tiny.model, tmp_path / "model.gguf")
    (tmp_path / "policies").mkdir()
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), tmp_path / "policies" / name)
    text = tiny.policy.read_text().replace(
        "{name: tiny}", "{name: tiny, owner: ops, description: first}"
    )
    (tmp_path / "policies" / "english-only.yaml").write_text(text, encoding="utf-8")
    (config,) = blocks("yml")
    (tmp_path / "scope.yaml").write_text(config, encoding="utf-8")

    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    said: dict[str, str] = {}
    process: subprocess.Popen[str] | None = None
    try:
        for line in lines:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                env[name] = value
            elif line == HOST:
                process = subprocess.Popen(
                    ["scope", "host", "scope.yaml"],
                    cwd=tmp_path,
                    env=env,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                )
                until((tmp_path / "control.sock").is_socket, "the host serves its socket")
            else:
                done = subprocess.run(
                    ["bash", "-c", line],
                    cwd=tmp_path,
                    env=env,
                    text=True,
                    timeout=120,
                    capture_output=True,
                    check=False,
                )
                assert done.returncode == 0, f"{line}: {done.stderr}"
                said[line] = done.stdout
    finally:
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()
    assert process is not None
    assert process.returncode == 0
    assert "in force" in said["scope status"]
    assert "rolled back: held" in said["scope status"]
    assert "OFF since" in said['scope off --reason "incident 7"']
    assert "in force" in said['scope reload --reason "the cause was elsewhere"']
    records = (tmp_path / "audit" / "events.jsonl").read_text()
    for reason in ("answers became terse", "incident 7", "incident 7 is over"):
        assert f'"reason":"{reason}"' in records
