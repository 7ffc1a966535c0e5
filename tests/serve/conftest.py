"""A server as an operator runs it: the command in a process of its own, with keys, admin listener and audit log."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from scope_runtime.serve.keys import digest
from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MODEL = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
USER, OTHER, ADMIN = "scope-user-key", "scope-other-key", "scope-admin-key"

HANGS_S = 300
"""After which something hangs. It bounds no test that passes, on however slow a machine."""

KEYS = f"""\
apiVersion: scope/v1
kind: Keys
keys:
  - {{name: acme-web, sha256: {digest(USER)}, labels: {{tenant: acme}}}}
  - {{name: other, sha256: {digest(OTHER)}, labels: {{tenant: globex}}}}
  - {{name: ops, sha256: {digest(ADMIN)}, admin: true}}
"""

CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {path: model.gguf, ctx: 512, threads: 1, parallel: 2}
  policy: {path: policies}
  audit: {path: audit/events.jsonl}
  serve:
    listen: ":0"
    admin: ":0"
    keys: keys.yaml
    alias: tiny
    labels: [team]
"""

EMBEDDING_CONFIG = CONFIG.replace("parallel: 2}", "parallel: 2, embeddings: mean}")


@dataclass
class Server:
    """A running ``scope serve``.

    Attributes:
        said: its lines on stderr, as they come; ``ended``: there are no more, and there is no process.
    """

    folder: Path
    process: subprocess.Popen[str]
    base_url: str = ""
    admin_url: str = ""
    model: str = "tiny"
    key: str = USER
    said: list[str] = field(default_factory=list)
    ended: bool = False
    told: threading.Condition = field(default_factory=threading.Condition)

    def client(self, key: str | None = USER) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        root = self.base_url.removesuffix("/v1")
        return httpx.Client(base_url=root, headers=headers, timeout=60)

    def admin(self, key: str | None = ADMIN) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.admin_url, headers=headers, timeout=60)

    def records(self) -> list[dict[str, Any]]:
        """What is in the audit log."""
        lines = (self.folder / "audit" / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.told:
                self.said.append(line.rstrip("\n"))
                self.told.notify_all()
        # Its stderr closes a moment before it has ended.
        self.process.wait()
        with self.told:
            self.ended = True
            self.told.notify_all()

    def wait_for(self, start: str, n: int = 1) -> str:
        """The rest of the n-th line that begins so. As long as the process runs it may yet come."""

        def found() -> list[str]:
            return [line.removeprefix(start) for line in self.said if line.startswith(start)]

        with self.told:
            came = self.told.wait_for(lambda: len(found()) >= n or self.ended, timeout=HANGS_S)
            lines = found()
        assert came, f"{start!r} did not come: {self.said}"
        assert len(lines) >= n, f"ended before {start!r}: {self.said}"
        return lines[n - 1]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=HANGS_S)


def furnish(folder: Path, config: str = CONFIG, keys: str = KEYS) -> None:
    """A folder with everything that the configuration names."""
    folder.mkdir(exist_ok=True)
    shutil.copy(MODEL, folder / "model.gguf")
    shutil.copytree(ROOT / "policies" / "packs", folder / "policies" / "packs")
    shutil.copy(ROOT / "policies" / "english-only.yaml", folder / "policies")
    (folder / "scope.yaml").write_text(config, encoding="utf-8")
    (folder / "keys.yaml").write_text(keys, encoding="utf-8")


@contextmanager
def serving(
    folder: Path, *arguments: str, wait: bool = True, under: Sequence[str] = ()
) -> Iterator[Server]:
    """``scope serve`` in a furnished folder; ``under`` is a command that becomes it."""
    command = [str(Path(sys.executable).with_name("scope")), "serve"]
    process = subprocess.Popen(
        [*under, *command, *(arguments or ("--config", "scope.yaml"))],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Server(folder, process)
    reader = threading.Thread(target=server._read)
    reader.start()
    try:
        if wait:
            server.base_url = server.wait_for("ready: ")
            admin = [line for line in server.said if line.startswith("admin: http")]
            server.admin_url = admin[0].removeprefix("admin: ") if admin else ""
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=HANGS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium: see scripts/system-packages. While it is open its thread runs no other event loop."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program is not None, "chromium is missing; scripts/system-packages installs it"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only ask."""
    folder = tmp_path_factory.mktemp("served") / "site"
    furnish(folder, EMBEDDING_CONFIG)
    with serving(folder) as running:
        yield running
