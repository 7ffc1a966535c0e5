"""The systemd unit: what systemd says to it, and a server that runs within its limits."""

from __future__ import annotations

import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, Scope
from tests.deploy.conftest import DEPLOY, USER, install, load
from tests.serve.conftest import serving
from tests.support.stock_server import server_path

SYSTEMD = DEPLOY / "systemd"
UNIT = SYSTEMD / "scope-serve.service"
CONFIG = SYSTEMD / "scope.yaml"
PORTS = {"127.0.0.1:8080": "127.0.0.1:0", "127.0.0.1:9464": "127.0.0.1:0"}
INSTALLED = "/opt/scope/bin/scope"
HERE = str(Path(sys.executable).with_name("scope"))
TOO_OLD = "Failed to parse service type, ignoring: notify-reload"
NOTIFY_RELOAD = 253
EXPOSURE = 15
"""Tenths of what systemd calls exposure, 100 being the worst; below 20 it says OK."""


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )


@cache
def version() -> int:
    return int(run("systemd-analyze", "--version").stdout.split()[1])


def settings(path: Path) -> dict[str, list[str]]:
    """The values of each key of ``[Service]``, in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


SERVICE = settings(UNIT)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the command where it is on this machine: systemd looks whether it can be executed."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace(INSTALLED, HERE), encoding="utf-8")
    return copy


def verify(unit: Path) -> list[str]:
    """What systemd finds, without what an older one has against the type: older-systemd.conf is for that."""
    done = run("systemd-analyze", "verify", "--man=no", unit)
    said = [line for line in done.stderr.splitlines() if unit.stem in line]
    if version() < NOTIFY_RELOAD:
        assert [line for line in said if TOO_OLD in line]
        said = [line for line in said if TOO_OLD not in line]
    else:
        assert (done.returncode == 0) == (said == [])
    return said


def drop_in(unit: Path, text: str) -> None:
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    (folder / "more.conf").write_text(text.replace(INSTALLED, HERE), encoding="utf-8")


def test_systemd_finds_nothing(unit: Path) -> None:
    assert verify(unit) == []


@pytest.mark.parametrize("name", ["older-systemd.conf", "gpu.conf", "llama-server.conf"])
def test_systemd_finds_nothing_with_a_drop_in(unit: Path, name: str) -> None:
    drop_in(unit, (SYSTEMD / name).read_text(encoding="utf-8"))
    assert verify(unit) == []


def test_a_mistake_would_be_seen(unit: Path) -> None:
    drop_in(unit, "[Service]\nLimitCORES=0\n")
    assert "LimitCORES" in verify(unit)[0]


def test_it_is_as_little_exposed_as_systemd_can_tell(unit: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unit_and_configuration_agree(scope: Scope) -> None:
    (start,) = SERVICE["ExecStart"]
    command, *words = shlex.split(start)
    assert (command, words) == (INSTALLED, ["serve", "--config", "/etc/scope/scope.yaml"])
    spec = load(CONFIG)["spec"]
    (environment,) = SERVICE["Environment"]
    assert f"SCOPE_CONTROL={spec['control']['socket']}" in environment.split()
    assert spec["control"]["socket"].startswith(f"/run/{SERVICE['RuntimeDirectory'][0]}/")
    state = f"/var/lib/{SERVICE['StateDirectory'][0]}/"
    for written in (spec["policy"]["state"], spec["audit"]["path"]):
        assert written.startswith(state)
    (stop,) = SERVICE["TimeoutStopSec"]
    assert spec["serve"]["drain_s"] < int(stop.removesuffix("s"))
    sysusers = (SYSTEMD / "scope.sysusers.conf").read_text(encoding="utf-8")
    assert f"u {SERVICE['User'][0]} " in sysusers


def test_an_older_systemd_reloads_with_a_command_that_exists(scope: Scope) -> None:
    old = settings(SYSTEMD / "older-systemd.conf")
    assert old["Type"] == ["notify"]
    command, *words = shlex.split(old["ExecReload"][0])
    assert command == INSTALLED
    assert words[0] == "reload"
    assert "--reason" in scope(words[0], "--help").stdout


def syscalls(group: str) -> set[str]:
    """The names in one of systemd's groups, groups in it included."""
    found = set()
    for line in run("systemd-analyze", "syscall-filter", group).stdout.splitlines():
        word = line.strip()
        if line.startswith("  ") and word and not word.startswith("#"):
            found |= syscalls(word) if word.startswith("@") else {word}
    return found


def allowed() -> set[str]:
    """What ``SystemCallFilter`` lets through; its lines add and take away."""
    found: set[str] = set()
    for line in SERVICE["SystemCallFilter"]:
        for group in line.removeprefix("~").split():
            found = found - syscalls(group) if line.startswith("~") else found | syscalls(group)
    assert len(found) > 100
    return found


def test_the_limits_hold() -> None:
    wanted = (
        "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"
    )
    assert run(sys.executable, "-c", wanted).returncode == 0
    limit = ROOT / "tests" / "support" / "no_write_execute.py"
    done = run(sys.executable, limit, sys.executable, "-c", wanted)
    assert "PermissionError" in done.stderr
    assert {"read", "mmap", "setpriority", "sched_setaffinity"} <= allowed()
    assert not {"reboot", "mount", "chroot", "ptrace"} & allowed()


def over_llama_server() -> list[str]:
    """What the drop-in adds to the command, with the server where it is on this machine."""
    more = settings(SYSTEMD / "llama-server.conf")
    empty, start = more["ExecStart"]
    (plain,) = SERVICE["ExecStart"]
    assert empty == ""
    assert start.startswith(plain)
    # Else systemd ends the server with the process that was to be followed by another.
    assert more["KillMode"] == ["process"]
    words = shlex.split(start.removeprefix(plain))
    program = words.index("--llama-server") + 1
    return [*words[:program], str(server_path()), *words[program + 1 :], "-t", "1", "--no-repack"]


@pytest.mark.parametrize("engine", ["embedded", "llama-server"])
def test_a_server_lives_within_the_unit(engine: str, tmp_path: Path, scope: Scope) -> None:
    """What the filter denies fails as under systemd, and so does a page that is writable and executable."""
    more = over_llama_server() if engine == "llama-server" else []
    assert SERVICE["SystemCallErrorNumber"] == ["EPERM"]
    assert SERVICE["MemoryDenyWriteExecute"] == ["yes"]
    denied = "!" + ",".join(f"?{name}" for name in sorted(allowed()))
    file = install(tmp_path, CONFIG.read_text(encoding="utf-8"), PORTS)
    limits = [sys.executable, str(ROOT / "tests" / "support" / "no_write_execute.py")]
    limits += ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(tmp_path / "calls")]
    limits += ["-e", f"trace={denied}", "-e", f"inject={denied}:error=EPERM"]
    with (
        serving(tmp_path, "--config", str(file), *more, under=limits) as server,
        server.client(USER) as client,
    ):
        asked = {"prompt": "the sea", "max_tokens": 4}
        answer = client.post("/v1/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert int(answer.headers["x-scope-interventions"]) > 0
        socket = ["--control", str(tmp_path / "run" / "scope" / "control.sock")]
        done = scope("reload", "--reason", "a test", *socket)
        assert done.returncode == 0, done.stderr
        assert server.stop() == 0
    audit = tmp_path / "var" / "lib" / "scope" / "audit" / "events.jsonl"
    assert scope("audit", "verify", audit).returncode == 0
