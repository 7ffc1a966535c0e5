"""The pre-commit hooks and the GitHub Action: their commands are run as those would run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.conftest import ROOT, Scope

HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with the shipped policies in it, tests that need no model."""
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    for test in ("english-only", "archaic-style"):
        (tmp_path / "policies" / f"{test}.test.yaml").unlink()
    return tmp_path


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_each_hook_passes_and_fails_where_it_should(
    hook: dict[str, Any], folder: Path, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    command = [*shlex.split(hook["entry"]), *hook.get("args", [])]
    assert command[0] == "scope"
    paths = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]
    matched = [path for path in paths if re.search(hook["files"], path)]
    assert "policies/english-only.yaml" in matched
    assert "policies/refusal-watch.test.yaml" in matched
    named = matched if hook.get("pass_filenames", True) else []
    done = scope(*command[1:], *named)
    assert done.returncode == 0, done.stdout + done.stderr

    policy = folder / "policies" / "refusal-watch.yaml"
    text = policy.read_text()
    policy.write_text(text.replace("above: 100.2", "above:  1000000.0"))
    done = scope(*command[1:], *named)
    if hook["id"] == "scope-fmt":  # it mends, and pre-commit sees that the file changed
        assert policy.read_text() == text.replace("above: 100.2", "above: 1000000.0")
        policy.write_text("a: [")
        assert scope(*command[1:], *named).returncode == 1
    elif hook["id"] == "scope-test":
        assert done.returncode == 1
    else:
        policy.write_text(text.replace("above: 100.2", "abov: 100.2"))
        assert scope(*command[1:], *named).returncode == 1


def run_action(folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The action's second step, in bash, with its inputs where GitHub would put them."""
    assert set(inputs) <= set(ACTION["inputs"])
    given = {name: inputs.get(name, each["default"]) for name, each in ACTION["inputs"].items()}
    step = ACTION["runs"]["steps"][1]
    env = {
        key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: given[m[1]], value)
        for key, value in step["env"].items()
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_action_passes_on_sound_policies(folder: Path) -> None:
    done = run_action(folder, sarif="out.sarif", junit="out.xml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"version": "2.1.0"' in (folder / "out.sarif").read_text()
    assert ET.parse(folder / "out.xml").getroot().get("tests") == "2"


def test_the_action_fails_where_something_is_wrong(folder: Path) -> None:
    assert run_action(folder, **{"min-coverage": "50"}).returncode == 1
    policy = folder / "policies" / "english-only.yaml"
    text = policy.read_text()
    policy.write_text(text.replace("  owner: examples\n", ""))
    assert "::warning file=policies/english-only.yaml" in run_action(folder).stdout
    assert run_action(folder).returncode == 0
    assert run_action(folder, warnings="fail").returncode == 1
    hidden = run_action(folder, warnings="hide")
    assert (hidden.returncode, "::warning" in hidden.stdout) == (0, False)
    policy.write_text(text.replace("kind: ", "kind:  "))
    assert run_action(folder, tests="false").returncode == 1
    policy.write_text(text.replace("mute: drift", "mute: drifts"))
    done = run_action(folder, tests="false")
    assert done.returncode == 1
    assert "::error file=policies/english-only.yaml,line=" in done.stdout


def test_the_action_installs_itself_and_nothing_else() -> None:
    (install, _) = ACTION["runs"]["steps"]
    assert install["run"] == 'python3 -m pip install --quiet "$GITHUB_ACTION_PATH"'
    assert ACTION["runs"]["using"] == "composite"
