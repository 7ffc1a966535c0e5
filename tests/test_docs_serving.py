"""docs/serving.md: its commands and its client are run, in their order, against a server that runs as the page says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.serve.conftest import MODEL, serving

BIN = Path(sys.executable).parent
SERVE = "scope serve --config scope.yaml"


def free_ports(n: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for said, free in zip(("8080", "8081"), free_ports(2), strict=True):
        page = page.replace(f"127.0.0.1:{said}", f"127.0.0.1:{free}")
    shutil.copy(MODEL, tmp_path / "model.gguf")
    shutil.copytree(ROOT / "policies" / "packs", tmp_path / "policies" / "packs")
    shutil.copy(ROOT / "policies" / "english-only.yaml", tmp_path / "policies")
    (config,) = blocks(page, "yml")
    (tmp_path / "scope.yaml").write_text(config, encoding="utf-8")
    (client,) = blocks(page, "py")
    (tmp_path / "client.py").write_text(client, encoding="utf-8")
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}

    def run(line: str) -> str:
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
        return done.stdout

    console = "".join(blocks(page, "console"))
    lines = [line.removeprefix("$ ") for line in console.splitlines()]
    before, after = lines[: lines.index(SERVE)], lines[lines.index(SERVE) + 1 :]
    for line in before:
        run(line)
    with serving(tmp_path, *SERVE.split()[2:]):
        told = run(f"{sys.executable} client.py")
        assert "rule stay-in-english" in told
        said = [run(line) for line in after]
    assert '"ready":true' in said[0]
    assert '"success":true' in said[1]
    assert '"changed":false' in said[2]
    assert '"assistant"' in said[3]
    assert said[4].splitlines()[1].split()[:2] == ["load", "1"]
    records = (tmp_path / "audit" / "events.jsonl").read_text(encoding="utf-8")
    assert '"labels":{"team":"travel","tenant":"acme"}' in records
