"""The scope.yaml files that ship: sound, and about places and ports that the rest of each example names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Scope
from tests.deploy.conftest import DEPLOY, install

SHIPPED = sorted(DEPLOY.rglob("scope.yaml"))


def test_there_are_some() -> None:
    assert {path.parent.name for path in SHIPPED} == {"systemd", "container"}


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.parent.name)
def test_scope_check_finds_nothing(config: Path, tmp_path: Path, scope: Scope) -> None:
    done = scope("check", install(tmp_path, config.read_text(encoding="utf-8"), {}))
    assert done.returncode == 0, done.stdout + done.stderr
