"""A real Prometheus on a free port, with the rules that ship, its clocks made short."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "examples" / "observability"
_DEADLINE_S = 60


class PrometheusError(Exception):
    """It did not start, or it refused what it was asked; the text is what it said."""


class Prometheus:
    """One that is running, by its HTTP interface."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)

    def ask(self, route: str, **params: str | float) -> Any:
        answer = self.http.get(f"/api/v1/{route}", params=params).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{params}: {answer['error']}")
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The instant vector of an expression."""
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def value(self, expr: str) -> float | None:
        """An expression's only value, None where there is none."""
        found = self.query(expr)
        return float(found[0]["value"][1]) if found else None

    def alerts(self, state: str = "firing") -> set[str]:
        """Names of the alerts in a state."""
        return {
            a["labels"]["alertname"] for a in self.ask("alerts")["alerts"] if a["state"] == state
        }

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition; the deadline is there to end what would wait for ever."""
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                raise PrometheusError(f"waited in vain until {what}")
            time.sleep(0.05)


def configuration(
    folder: Path, target: str, *, interval: str, wait: str | None, rules: Path = SHIPPED
) -> Path:
    """The files that ship, for this target, with all intervals made ``interval`` and each ``for`` made ``wait``."""
    text = (rules / "scope-rules.yml").read_text(encoding="utf-8")
    if wait is not None:
        text = re.sub(r"^( +)for: .*$", rf"\1for: {wait}", text, flags=re.MULTILINE)
    (folder / "scope-rules.yml").write_text(text, encoding="utf-8")
    config = yaml.safe_load((rules / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["scrape_configs"][0]["scrape_timeout"] = interval
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def running(config: Path) -> Iterator[Prometheus]:
    """Starts one that keeps its data beside its configuration; ended at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = config.with_name("prometheus.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdout=output,
            stderr=output,
        )
        prometheus = Prometheus(f"http://{address}")

        def ready() -> bool:
            if process.poll() is not None:
                raise PrometheusError(log.read_text())
            try:
                return prometheus.http.get("/-/ready").is_success
            except httpx.TransportError:
                return False

        try:
            prometheus.until(ready, "it is ready")
            yield prometheus
        finally:
            prometheus.http.close()
            process.terminate()
            process.wait()
