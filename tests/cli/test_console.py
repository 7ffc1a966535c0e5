"""``scope console``: the page on a model alone, with a key of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from scope_runtime.cli.main import main
from tests.conftest import ROOT
from tests.serve.conftest import MODEL

POLICY = ROOT / "policies" / "english-only.yaml"


def test_it_prints_an_address_and_a_key_and_saves_the_first_policy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "policies" / "packs", tmp_path / "packs")
    scope = str(Path(sys.executable).with_name("scope"))
    command = ["console", "--model", str(MODEL), "--policies", ".", "--port", "0", "--ctx", "256"]
    process = subprocess.Popen(
        [scope, *command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        said = dict(process.stderr.readline().rstrip().split(": ", 1) for _ in range(2))
        page = said["console"].removesuffix("/console/")
        headers = {"authorization": f"Bearer {said['key']}"}
        with httpx.Client(base_url=page, timeout=60) as client:
            assert client.get("/console/").status_code == 200
            assert client.get("/-/policies").status_code == 401
            client.headers.update(headers)
            assert client.get("/-/policies").json()["policies"] == []
            assert client.get("/-/features").json()["n_found"] > 5
            text = POLICY.read_text(encoding="utf-8")
            body = {"file": "english-only.yaml", "text": text, "expected": None}
            assert client.post("/-/save", json=body).json()["changed"]
            assert client.get("/-/policies").json()["policies"][0]["name"] == "english-only"
        assert (tmp_path / "english-only.yaml").read_text(encoding="utf-8") == text
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest


def test_without_its_directory_it_says_what_to_do(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "policies")
    assert main(["console", "--model", str(MODEL), "--policies", nowhere]) == 2
