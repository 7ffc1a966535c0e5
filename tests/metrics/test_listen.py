"""The TCP listener that scope.yaml asks for: for scrapers and probes, and for nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from scope_runtime import Runtime
from scope_runtime.configured import configured
from scope_runtime.errors import PolicyErrors, UsageError
from scope_runtime.lifecycle.config import load_config
from tests.lifecycle.conftest import Site, site

__all__ = ["site"]  # a fixture

TEXT = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: 512, threads: 1}}
  policy: {{path: policies, poll_s: 600}}
  metrics: {{listen: "{listen}"}}
"""


def config_file(site: Site, listen: str) -> Path:
    path = site.folder.parent / "scope.yaml"
    path.write_text(TEXT.format(model=site.model, listen=listen), encoding="utf-8")
    return path


@contextmanager
def served(site: Site, listen: str = ":0") -> Iterator[tuple[Runtime, httpx.Client]]:
    with configured(load_config(config_file(site, listen))) as runtime:
        address = runtime.hosted.metrics_address
        with httpx.Client(base_url=f"http://{address}") as http:
            yield runtime, http


def test_metrics_health_and_ready_over_tcp_and_nothing_that_changes_anything(site: Site) -> None:
    with served(site) as (runtime, http):
        assert runtime.hosted.metrics_address.host == "127.0.0.1"
        assert http.get("/health").json() == {"status": "alive"}
        revision = runtime.hosted.lifecycle.revision
        ready = http.get("/ready").json()
        assert (ready["ready"], ready["revision"]) == (True, revision)
        told = http.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        assert told.headers["content-type"].startswith("application/openmetrics-text")
        samples = {
            (sample.name, tuple(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(told.text)
            for sample in family.samples
        }
        assert samples["scope_revision_info", (("revision", revision),)] == 1
        assert samples["scope_policy_reload_success", ()] == 1
        for route in ("/-/policies", "/-/events", "/docs", "/openapi.json"):
            assert http.get(route).status_code == 404
        for route in ("/-/reload", "/-/off", "/-/rollback"):
            assert http.post(route).status_code == 404
        assert runtime.hosted.lifecycle.switch is None
    with pytest.raises(httpx.ConnectError):
        http_after(runtime)


def http_after(runtime: Runtime) -> None:
    httpx.get(f"http://{runtime.hosted.metrics_address}/health")


def test_a_port_that_somebody_has_is_told_before_the_model_is_loaded(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = config_file(site, f"127.0.0.1:{port}")
        site.policy.unlink()  # would be said if it came so far
        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}"):
            configured(load_config(path))


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1:65536", "a b:1", ""])
def test_an_address_that_is_none_is_refused_with_its_place(site: Site, listen: str) -> None:
    with pytest.raises(PolicyErrors) as refused:
        load_config(config_file(site, listen))
    assert "scope.yaml:6:21" in str(refused.value)
    assert "HOST:PORT, or :PORT" in str(refused.value)


def test_behaviour_9_a_bad_edit_shows_on_the_success_gauge_and_its_fix_too(site: Site) -> None:
    with served(site) as (runtime, http):
        good = runtime.hosted.lifecycle.revision

        def told() -> list[str]:
            runtime.hosted.lifecycle.follow()
            names = ("scope_policy_reload_success ", 'scope_policy_reloads_total{result="refused"}')
            lines = http.get("/metrics").text.splitlines()
            assert f'scope_revision_info{{revision="{good}"}} 1.0' in lines
            return [line.split()[-1] for line in lines if line.startswith(names)]

        assert told() == ["1.0", "0.0"]
        site.replace(site.text.replace("mute: [one, two]", "mute: [one, tow]"))
        assert told() == ["0.0", "1.0"]
        site.replace(site.text)
        assert told() == ["1.0", "1.0"]
