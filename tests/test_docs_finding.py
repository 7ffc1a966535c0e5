"""docs/finding-features.md: the walk from texts to a rolled-out policy, as the page has it, command by command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.lifecycle.conftest import until

PAGE = (ROOT / "docs" / "finding-features.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
HOST = "scope host scope.yaml < prompts"
CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {path: examples/tiny-qwen3/tiny-qwen3-q8_0.gguf, ctx: 512}
  policy: {path: live, state: state, fail: closed}
  control: {socket: control.sock}
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_walk_leads_from_texts_to_a_policy_that_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "scope.yaml").write_text(CONFIG, encoding="utf-8")
    [policy] = blocks("yaml english")
    [test] = blocks("yaml test")
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}
    env["SCOPE_CONTROL"] = "control.sock"
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    said: dict[str, list[str]] = {}
    process: subprocess.Popen[str] | None = None
    try:
        for line in lines:
            if line == HOST:
                process = subprocess.Popen(
                    ["scope", "host", "scope.yaml"],
                    cwd=tmp_path,
                    env=env,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                )
                until((tmp_path / "control.sock").is_socket, "the host serves its socket")
                continue
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=tmp_path,
                env=env,
                text=True,
                timeout=240,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said.setdefault(line, []).append(done.stdout)
            if line.startswith("scope find"):
                found = done.stdout
                pack = next(each for each in lines if each.startswith("scope convert pack"))
                assert f"  {pack}\n" in found, f"the page's pack is not what was found:\n{found}"
                written = (tmp_path / "english.yaml").read_text(encoding="utf-8")
                assert _meaning(written) == _meaning(policy)
                (tmp_path / "english.yaml").write_text(policy, encoding="utf-8")
                (tmp_path / "english.test.yaml").write_text(test, encoding="utf-8")
    finally:
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.wait()
    assert process is not None
    assert process.returncode == 0
    assert "about to go over into Chinese" in said["scope label english.gguf"][0]
    [compared] = [out for line, [out] in _singles(said) if line.startswith("scope run")]
    assert re.search("[\u4e00-\u9fff]", compared), "unsteered, the model drifts"
    for told in said["scope test english.test.yaml"]:
        assert "3 cases, 0 failed" in told
    [swept] = [out for line, [out] in _singles(said) if line.startswith("scope sweep")]
    assert "english.yaml: written" in swept
    assert "      factor: " in (tmp_path / "live" / "english.yaml").read_text(encoding="utf-8")
    before, after = said["scope status"]
    assert before != after


def _singles(said: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    return [(line, out) for line, out in said.items() if len(out) == 1]


def _meaning(text: str) -> Any:
    """A policy as data, without what a person adds to it."""
    loaded = yaml.safe_load(text)
    for key in ("owner", "description"):
        loaded["metadata"].pop(key, None)
    return loaded
