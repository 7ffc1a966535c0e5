"""The compose file: as its specification reads it, and with every file that it mounts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from scope_runtime.lifecycle.address import Address
from tests.conftest import ROOT
from tests.deploy.conftest import DEPLOY, load

FOLDER = DEPLOY / "compose"
SPEC = load(DEPLOY / "container" / "scope.yaml")["spec"]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, **given: str) -> str:
    """Variables as compose puts them in: ``${NAME:-default}``, ``${NAME:?what is missing}``."""

    def value(match: re.Match[str]) -> str:
        name, how, rest = match.groups()
        if name in given:
            return given[name]
        assert how == "-", f"{name}: {rest}"
        return str(rest)

    return VARIABLE.sub(value, text)


TEXT = interpolated((FOLDER / "compose.yaml").read_text(encoding="utf-8"), MODEL="/m/model.gguf")
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]


def test_the_specification_accepts_it() -> None:
    compose = PyCompose.from_yaml(TEXT)
    compose.validate()
    assert set(compose.service_names()) == {"scope", "prometheus", "grafana"}
    with pytest.raises(ValueError, match="read_onli"):
        PyCompose.from_yaml(
            TEXT.replace("read_only: true\n    tmpfs", "read_onli: true\n    tmpfs")
        )


def mounts() -> list[dict[str, Any]]:
    return [mount for service in SERVICES.values() for mount in service["volumes"]]


def test_what_it_mounts_is_there_or_is_the_operators() -> None:
    ignored = (FOLDER / ".gitignore").read_text(encoding="utf-8").split()
    for mount in mounts():
        if mount["type"] == "bind":
            assert mount["read_only"], mount
            source = mount["source"]
            theirs = source.startswith("/") or f"{Path(source).name}/" in ignored
            assert theirs or (FOLDER / source).is_file(), source
    assert (FOLDER / SERVICES["scope"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / SERVICES["scope"]["build"]["dockerfile"]).is_file()


def test_the_configuration_finds_what_is_mounted() -> None:
    targets = [mount["target"] for mount in SERVICES["scope"]["volumes"]]
    targets += [entry.split(":")[0] for entry in SERVICES["scope"]["tmpfs"]]
    named = [SPEC["model"]["path"], SPEC["policy"]["path"], SPEC["policy"]["state"]]
    named += [SPEC["serve"]["keys"], SPEC["audit"]["path"], SPEC["control"]["socket"]]
    for path in named:
        assert any(Path(path).is_relative_to(target) for target in targets), path


def test_nothing_listens_beyond_this_machine_and_nothing_floats() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert re.search(r":(v?\d+\.\d+\.\d+|local)$", service["image"]), name


def test_the_server_has_time_to_drain() -> None:
    assert SPEC["serve"]["drain_s"] < int(SERVICES["scope"]["stop_grace_period"].rstrip("s"))


def test_prometheus_reads_what_it_gets(tmp_path: Path) -> None:
    for mount in SERVICES["prometheus"]["volumes"]:
        if mount["type"] == "bind":
            shutil.copy(FOLDER / mount["source"], tmp_path / Path(mount["target"]).name)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    (job,) = load(FOLDER / "prometheus.yml")["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert host in SERVICES
    assert int(port) == Address.parse(SPEC["metrics"]["listen"]).port


def test_grafana_finds_dashboard_and_data() -> None:
    (source,) = load(FOLDER / "grafana" / "datasource.yaml")["datasources"]
    assert re.fullmatch(r"http://(\w+):9090", source["url"])
    assert re.findall(r"\w+", source["url"])[1] in SERVICES
    (provider,) = load(FOLDER / "grafana" / "dashboards.yaml")["providers"]
    bound = [mount for mount in SERVICES["grafana"]["volumes"] if mount["type"] == "bind"]
    (dashboard,) = [mount for mount in bound if mount["source"].endswith(".json")]
    assert Path(dashboard["target"]).parent == Path(provider["options"]["path"])
    board = json.loads((FOLDER / dashboard["source"]).read_text(encoding="utf-8"))
    (variable,) = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
    assert variable["query"] == source["type"]
