"""Debian's Alertmanager, as it comes: the last word on what a webhook of its form looks like."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lifecycle.conftest import until

PROGRAM = "prometheus-alertmanager"

_CONFIG = """\
route: {{receiver: desk, group_by: [policy], group_wait: 200ms, group_interval: 500ms, repeat_interval: 1h}}
receivers:
  - name: desk
    webhook_configs: [{{url: "{url}", send_resolved: true}}]
"""


class Alertmanager:
    """One that is running, and tells the webhook at ``url``."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def post(self, alerts: list[dict[str, Any]]) -> None:
        """As Prometheus posts them: API version 2."""
        request = urllib.request.Request(
            f"{self._address}/api/v2/alerts",
            json.dumps(alerts).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60):
            pass


@contextmanager
def alertmanager(folder: Path, url: str) -> Iterator[Alertmanager]:
    """Starts one; ended at the end. It is in scripts/system-packages."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed; run scripts/system-packages")
    config = folder / "alertmanager.yml"
    config.write_text(_CONFIG.format(url=url))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            made = Alertmanager(f"http://127.0.0.1:{port}")
            until(lambda: process.poll() is not None or made.ready(), "Alertmanager is ready")
            if process.poll() is not None:
                raise RuntimeError((folder / "alertmanager.log").read_text())
            yield made
        finally:
            process.terminate()
            process.wait()
