"""A server's process: its end is seen at once, and nothing of it is left."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.attached.preload import check_program
from scope_runtime.attached.process import Process, started
from scope_runtime.attached.upstream import Upstream
from scope_runtime.errors import HookError
from tests.support.stock_server import server_path

HANGS_S = 300.0
DEAF = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(other.pid, flush=True)
signal.pause()
"""


def child(code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def test_an_end_is_seen_and_told_in_words() -> None:
    with child("raise SystemExit(3)") as running:
        process = Process.of(running)
        assert process.ended(HANGS_S)
        assert process.how == "exit status 3"
    with child("import signal; signal.pause()") as running:
        killed = Process.of(running)
        assert not killed.ended()
        running.kill()
        assert killed.ended(HANGS_S)
        assert killed.how == "ended by SIGKILL"
    for each in (process, killed):
        each.close()
        each.close()
        assert each.ended()


def test_an_end_is_seen_where_no_file_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the thread that watches the server, which nobody started again from then on."""

    def full(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with child("import signal; signal.pause()") as running:
        process = Process.of(running)
        monkeypatch.setattr(os, "dup", full)
        assert not process.ended()
        running.kill()
        assert process.ended(HANGS_S)
        assert process.how == "ended by SIGKILL"
        monkeypatch.undo()
    process.close()


@pytest.mark.parametrize(
    ("code", "says"), [(errno.EMFILE, True), (errno.ENFILE, True), (errno.ECONNREFUSED, False)]
)
def test_who_cannot_ask_does_not_take_that_for_a_servers_silence(
    monkeypatch: pytest.MonkeyPatch, code: int, says: bool
) -> None:
    def fails(*about: Any, **more: Any) -> socket.socket:
        raise OSError(code, os.strerror(code))

    upstream = Upstream(1, "key")
    monkeypatch.setattr(socket, "create_connection", fails)
    assert (upstream.speaks(1.0), upstream.answers(1.0)) == (says, says)
    upstream.close()


def test_what_does_not_listen_is_ended_with_all_that_it_started() -> None:
    with child(DEAF) as running:
        assert running.stdout is not None
        other = os.pidfd_open(int(running.stdout.readline()))
        try:
            process = Process.of(running)
            process.end(timeout_s=0.2)
            assert process.ended(HANGS_S)
            assert process.how == "ended by SIGKILL"
            poll = select.poll()
            poll.register(other, select.POLLIN)
            assert poll.poll(HANGS_S * 1e3)
        finally:
            os.close(other)
            process.close()


def test_a_number_that_is_another_process_by_now_is_told_apart() -> None:
    with child("input()") as one:
        assert started(one.pid) == started(one.pid) is not None
        gone = one.pid
        one.kill()
    assert started(gone) is None
    with pytest.raises(ProcessLookupError):
        Process(gone)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    source, program = folder / "static.c", folder / "static"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["g++", "-x", "c", "-static", source, "-o", program], check=True)
    return program


def test_programs_into_which_no_hook_comes_are_refused_in_words(
    static: Path, tmp_path: Path
) -> None:
    script = tmp_path / "server.sh"
    script.write_text("#!/bin/sh\nexec llama-server\n")
    setuid = tmp_path / "setuid"
    setuid.write_bytes(Path("/bin/true").read_bytes())
    setuid.chmod(0o4755)
    text = tmp_path / "text"
    text.write_text("no program\n")
    reasons = {
        static: "is linked statically",
        script: "is a script",
        setuid: "runs with rights that its user has not",
        text: "is no ELF program",
    }
    for program, reason in reasons.items():
        with pytest.raises(HookError, match=reason) as caught:
            check_program(program)
        told = str(caught.value)
        assert told.startswith(f"{program} {reason}: the hook cannot be loaded into it; expected ")
        assert "--engine embedded" in told
    check_program(server_path())
    check_program(Path(sys.executable))
