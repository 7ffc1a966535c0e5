"""What systemd is told, read from a socket like its own."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scope_runtime.serve.notify import SOCKET, Supervisor
from tests.serve.conftest import furnish, serving

Fields = dict[str, str]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        listener.bind(str(tmp_path / "notify"))
        yield listener


def fields(listener: socket.socket) -> Fields:
    """Of the next datagram; one assignment a line, as sd_notify(3) has it."""
    text = listener.recv(65_536).decode()
    return dict(line.split("=", 1) for line in text.split("\n"))


def test_a_reload_carries_the_time_at_which_it_began(heard: socket.socket) -> None:
    supervisor = Supervisor(heard.getsockname(), lambda: 1_234_567)
    supervisor.reloading()
    told = {"RELOADING": "1", "MONOTONIC_USEC": "1234567", "STATUS": "reloading"}
    assert fields(heard) == told


def test_the_clock_is_the_one_that_systemd_compares_with(heard: socket.socket) -> None:
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    Supervisor(heard.getsockname()).reloading()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert before - 1e-6 <= int(fields(heard)["MONOTONIC_USEC"]) / 1e6 <= after


def test_a_status_is_one_line_whatever_it_quotes(heard: socket.socket) -> None:
    Supervisor(heard.getsockname()).ready("refused:\nSTOPPING=1")
    assert fields(heard) == {"READY": "1", "STATUS": "refused: STOPPING=1"}


def test_a_socket_without_a_path() -> None:
    name = f"scope-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(60)
        Supervisor(f"@{name}").stopping("over")
        assert fields(listener) == {"STOPPING": "1", "STATUS": "over"}


@pytest.mark.parametrize("address", [None, "", "@", "vsock:2:9", "/gone/notify"])
def test_nobody_listens_and_nothing_happens(address: str | None) -> None:
    Supervisor(address).ready("fine")


def test_children_do_not_inherit_it() -> None:
    environment = {SOCKET: "/run/notify", "OTHER": "1"}
    Supervisor.of(environment)
    assert environment == {"OTHER": "1"}


def test_a_process_is_ready_reloads_and_stops(
    heard: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Type=notify-reload expects: no READY before it answers; RELOADING, then READY, well or not."""
    site = tmp_path / "site"
    furnish(site)
    monkeypatch.setenv(SOCKET, heard.getsockname())
    with serving(site) as server:
        started = fields(heard)
        assert started["READY"] == "1"
        assert server.base_url in started["STATUS"]
        with server.client() as client:
            assert client.get("/ready").status_code == 200

        server.process.send_signal(signal.SIGHUP)
        begun, over = fields(heard), fields(heard)
        assert set(begun) == {"RELOADING", "MONOTONIC_USEC", "STATUS"}
        with server.admin() as admin:
            revision = admin.get("/-/policies").json()["revision"]
        assert over == {"READY": "1", "STATUS": f"in force: {revision}"}

        (site / "keys.yaml").write_text("kind: Nothing\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        begun, over = fields(heard), fields(heard)
        assert "RELOADING" in begun
        assert over["READY"] == "1"
        assert over["STATUS"].startswith("the latest reload was refused: ")
        assert "keys.yaml" in over["STATUS"]

        assert server.stop() == 0
        assert fields(heard)["STOPPING"] == "1"
