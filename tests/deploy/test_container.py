"""The container file: its linter, what reaches the build, and what runs in it."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scope_runtime.lifecycle.address import Address
from scope_runtime.serve.app import routes
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import KeyRing
from scope_runtime.serve.options import ServeOptions
from tests.conftest import ROOT
from tests.deploy.conftest import DEPLOY, load

FILE = DEPLOY / "container" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8").replace("\\\n", " ")
IGNORED = (FILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8")
SPEC = load(DEPLOY / "container" / "scope.yaml")["spec"]


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("hadolint")),
            "--no-color",
            "--failure-threshold=style",
            "-",
        ],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def test_its_linter_finds_nothing() -> None:
    done = hadolint(FILE.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert hadolint("FROM python\n").returncode == 1


def instructions(name: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def last_stage() -> str:
    return TEXT[TEXT.rindex("\nFROM ") :]


def carried(path: str) -> bool:
    """Whether it is in the build's context: the last pattern that fits the path or a folder above it decides."""
    parts = Path(path).parts
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    found = True
    for line in IGNORED.splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keep = line.removeprefix("!"), line.startswith("!")
        pattern = pattern.removeprefix("**/")
        names = above if pattern == line.removeprefix("!") else list(parts)
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            found = keep
    return found


def test_what_the_wheel_is_made_of_reaches_the_build_and_nothing_else_does() -> None:
    copied = [word for line in instructions("COPY") for word in line.split()[:-1]]
    assert "pyproject.toml" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert carried(name), name
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    inside = {name for name in listed if carried(name)}
    assert any(name.endswith(".cpp") for name in inside)
    assert {name.split("/")[0] for name in inside} == set(copied)
    for name in (".env", "keys.yaml", "models/model.gguf", "scope_runtime/native/libscope_hook.so"):
        assert not carried(name), name


def test_no_base_floats_and_no_stage_but_the_last_has_a_compiler() -> None:
    for base in instructions("FROM"):
        image, _, tag = base.split()[0].partition(":")
        assert re.match(r"\d+\.\d+-", tag), image
    assert "g++" not in last_stage()


def test_it_runs_as_nobody_in_particular() -> None:
    (user,) = instructions("USER", last_stage())
    uid, gid = map(int, user.split(":"))
    assert uid > 1000
    assert gid > 1000
    assert f"--uid {uid} " in TEXT


def paths() -> set[str]:
    gateway = Gateway(ServeOptions(), "tiny", KeyRing(None))
    return {route.path for route in routes(gateway).routes if hasattr(route, "path")}


def test_its_health_is_asked_for_where_the_server_answers() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", TEXT, re.MULTILINE)
    command: list[Any] = ast.literal_eval(check)
    (url,) = re.findall(r"http://[^']+", command[-1])
    compile(command[-1], "healthcheck", "exec")
    assert urlsplit(url).path in paths()
    assert urlsplit(url).port == Address.parse(SPEC["serve"]["listen"]).port


def test_its_ports_and_places_are_those_of_the_configuration() -> None:
    (ports,) = instructions("EXPOSE")
    listening = [SPEC["serve"]["listen"], SPEC["metrics"]["listen"]]
    assert [int(port) for port in ports.split()] == [Address.parse(at).port for at in listening]
    (volume,) = instructions("VOLUME")
    for written in (SPEC["policy"]["state"], SPEC["audit"]["path"]):
        assert written.startswith(ast.literal_eval(volume)[0])
    assert f"SCOPE_CONTROL={SPEC['control']['socket']}" in TEXT
    (command,) = instructions("CMD", last_stage())
    assert ast.literal_eval(command) == ["serve", "--config", "/etc/scope/scope.yaml"]
