"""Behaviour 30 on a real disk that is full, in a runtime as ``scope.yaml`` configures it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.configured import configured
from scope_runtime.errors import AuditError
from scope_runtime.lifecycle.client import ControlClient, RefusedError
from scope_runtime.lifecycle.config import load_config
from tests.audit.support import Site, until
from tests.serve.conftest import CONFIG, furnish, serving
from tests.support.audit_logs import records_of
from tests.support.small_disk import SmallDisk, small_disk

PROMPT = [5, 17, 33, 80, 41, 60, 77]
MOST_REQUESTS = 100


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        yield disk


class Service:
    """A configured runtime whose log is on the small disk."""

    def __init__(self, site: Site, disk: SmallDisk, on_failure: str) -> None:
        text = site.text + "  audit: {prompts: keep, outputs: keep}\n"
        site.policy.write_text(text, encoding="utf-8")
        self.file = site.folder.parent / "scope.yaml"
        self.socket = site.folder.parent / "control.sock"
        self.files = LogFiles(disk.folder / "log.jsonl")
        self.file.write_text(
            "apiVersion: scope/v1\n"
            "kind: Runtime\n"
            "spec:\n"
            f"  model: {{path: {site.model}, ctx: 256, threads: 1}}\n"
            "  policy: {path: policies, state: state, poll_s: 600}\n"
            "  control: {socket: control.sock}\n"
            f"  audit: {{path: {self.files.path}, on_failure: {on_failure}}}\n",
            encoding="utf-8",
        )

    def open(self) -> Runtime:
        return configured(load_config(self.file))

    def ready(self) -> dict[str, object]:
        """What ``/ready`` says; liveness must hold whatever that is."""
        with ControlClient(self.socket) as client:
            assert client.get("/health")["status"] == "alive"
            try:
                said = client.get("/ready")
            except RefusedError as refused:
                said = refused.said
        assert isinstance(said, dict)
        return said

    def told(self) -> object:
        """What the operator is told of the log's error."""
        with ControlClient(self.socket) as client:
            return client.get("/-/policies")["audit"]["error"]

    def summaries(self) -> list[str]:
        return [r["request_id"] for r in records_of(self.files) if r["what"] == "summary"]


def ask(runtime: Runtime, number: int) -> None:
    runtime.generate(PROMPT, max_tokens=2, temperature=0.0, request_id=f"q{number}")


def test_30_stop_refuses_requests_until_the_log_is_opened_again(
    site: Site, disk: SmallDisk
) -> None:
    service = Service(site, disk, "stop")
    with service.open() as runtime:
        ask(runtime, 0)
        assert service.ready()["ready"] is True
        disk.fill()
        number = 0

        def ask_on() -> None:
            nonlocal number
            while number < MOST_REQUESTS:
                number += 1
                ask(runtime, number)

        with pytest.raises(AuditError, match="No space left on device"):
            ask_on()
        decoded = len(runtime.events())
        with pytest.raises(AuditError, match=r"no request is served.*No space left.*restart"):
            ask(runtime, 1000)
        assert len(runtime.events()) == decoded  # it was not even begun
        said = service.ready()
        assert said["ready"] is False
        assert isinstance(said["audit"], dict)
        assert said["audit"]["final"] is True
        assert "error" not in said["audit"]  # nor a path: anybody may ask a probe
        assert service.told() == "[Errno 28] No space left on device"
        disk.free()
        with pytest.raises(AuditError, match="no request is served"):
            ask(runtime, 1001)
    before = service.summaries()
    assert before == [f"q{n}" for n in range(number)]
    with service.open() as runtime:
        ask(runtime, 2000)
        assert service.ready()["ready"] is True
    assert service.summaries() == [*before, "q2000"]
    report = verify(service.files)
    assert (report.bad, report.dropped) == (None, 0)
    assert report.contents is not None
    assert report.contents.n_kept == 2 * (number + 1)


def test_30_block_lets_requests_wait_until_there_is_space(site: Site, disk: SmallDisk) -> None:
    service = Service(site, disk, "block")
    with service.open() as runtime:
        log = runtime.audit
        assert log is not None
        disk.fill()
        asked: list[int] = []

        def work() -> None:
            for number in range(MOST_REQUESTS):
                asked.append(number)
                ask(runtime, number)
                if len(asked) > 1 and freed.is_set():
                    return

        freed = threading.Event()
        caller = threading.Thread(target=work)
        caller.start()
        until(lambda: log.status.failing_since is not None, "the disk is full")
        late = threading.Thread(target=ask, args=(runtime, 1000))
        late.start()
        said = service.ready()
        assert said["ready"] is False
        assert isinstance(said["audit"], dict)
        assert (said["audit"]["final"], said["audit"]["queued"] > 0) == (False, True)
        assert caller.is_alive()
        assert late.is_alive()
        freed.set()
        disk.free()
        caller.join(60)
        late.join(60)
        assert not caller.is_alive()
        assert not late.is_alive()
        assert service.ready()["ready"] is True
        status = log.status
        assert (status.error, status.failing_since, status.queued, status.dropped) == (
            None,
            None,
            0,
            0,
        )
    assert sorted(service.summaries()) == sorted([*(f"q{n}" for n in asked), "q1000"])
    report = verify(service.files)
    assert (report.bad, report.dropped) == (None, 0)


def test_30_drop_serves_on_and_the_log_says_what_is_missing(
    site: Site, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was dropped is noted with the next record, not before: a note alone might fit into the log's last page.
    monkeypatch.setattr("scope_runtime.audit.log.LONGEST_PAUSE_S", 3600)
    service = Service(site, disk, "drop")
    with service.open() as runtime:
        log = runtime.audit
        assert log is not None
        ask(runtime, 0)
        disk.fill()
        for number in range(1, MOST_REQUESTS):
            ask(runtime, number)
            if log.status.error:
                break
        said = service.ready()
        assert said["ready"] is True
        assert isinstance(said["audit"], dict)
        assert said["audit"]["dropped"] == log.dropped > 0
        assert said["audit"]["failing_since"] is not None
        assert service.told() == "[Errno 28] No space left on device"
        disk.free()
        ask(runtime, 2000)
        assert (log.status.error, log.status.failing_since) == (None, None)
        gaps = [r["n_events"] for r in records_of(service.files) if r["what"] == "dropped"]
        assert sum(gaps) == log.dropped
    report = verify(service.files)
    assert (report.bad, report.dropped) == (None, log.dropped)
    assert service.summaries()[-1] == "q2000"
    assert f"q{number}" not in service.summaries()


def test_30_a_server_that_cannot_put_on_record_refuses_and_is_not_ready(
    disk: SmallDisk, tmp_path: Path
) -> None:
    """``stop``, as a client and a load balancer meet it."""
    log = disk.folder / "log.jsonl"
    config = CONFIG.replace("{path: audit/events.jsonl}", f"{{path: {log}, on_failure: stop}}")
    furnish(tmp_path / "site", config)
    body = {"model": "tiny", "prompt": "one", "max_tokens": 1, "temperature": 0}
    with serving(tmp_path / "site") as server, server.client() as client:
        assert client.get("/ready").status_code == 200
        disk.fill()
        answers = [client.post("/v1/completions", json=body)]
        while answers[-1].status_code == 200:
            assert len(answers) < MOST_REQUESTS
            answers.append(client.post("/v1/completions", json=body))
        answers.append(client.post("/v1/completions", json=body))
        for answer in answers[-2:]:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "not_on_record"
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (
            503,
            "the audit log cannot be written",
        )
        assert client.get("/health").status_code == 200
        disk.free()
        server.stop()
    report = verify(LogFiles(log))
    assert report.bad is None
    done = [r for r in records_of(LogFiles(log)) if r["what"] == "summary"]
    assert len(done) == len(answers) - 2
