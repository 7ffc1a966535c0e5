"""The examples in a folder of their own: their absolute paths lead below it, and everything they name is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scope_runtime.audit.note import SigningKey
from scope_runtime.serve.keys import digest
from tests.conftest import ROOT

DEPLOY = ROOT / "examples" / "deploy"
MODEL = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
POLICY = (ROOT / "policies" / "english-only.yaml").read_text(encoding="utf-8")
PACK = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"
USER = "scope-user-key"
KEYS = f"""\
apiVersion: scope/v1
kind: Keys
keys:
  - {{name: acme-web, sha256: {digest(USER)}, labels: {{tenant: acme}}}}
"""


def load(path: Path) -> Any:
    """A YAML file's one document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def spec_of(text: str) -> Any:
    return yaml.safe_load(text)["spec"]


def below(folder: Path, text: str) -> str:
    """The text, every absolute path in it moved below the folder."""
    return re.sub(r"(?<![\w.:/])/(?=(etc|var|srv|run|models)/)", f"{folder}/", text)


def write_signing_key(path: Path) -> None:
    path.write_text(SigningKey.generate("example.com/audit").text, encoding="utf-8")
    path.chmod(0o600)


def install(folder: Path, config: str, ports: Mapping[str, str]) -> Path:
    """Puts a scope.yaml at etc/scope, and what it names where it says.

    Args:
        config: its text, as it ships.
        ports: addresses to listen at instead.

    Returns:
        the installed file.
    """
    assert all(old in config for old in ports)
    for old, new in ports.items():
        config = config.replace(old, new)
    home = folder / "etc" / "scope"
    home.mkdir(parents=True)
    file = home / "scope.yaml"
    file.write_text(below(folder, config), encoding="utf-8")
    spec = spec_of(file.read_text(encoding="utf-8"))

    def place(path: str) -> Path:
        full = home / path
        full.parent.mkdir(parents=True, exist_ok=True)
        return full

    shutil.copy(MODEL, place(spec["model"]["path"]))
    place(spec["serve"]["keys"]).write_text(KEYS, encoding="utf-8")
    place(spec["control"]["socket"])
    if "key" in spec["audit"]:
        write_signing_key(place(spec["audit"]["key"]))
    policies = place(spec["policy"]["path"])
    policies.mkdir()
    packs = policies.parent / "packs" if "root" in spec["policy"] else policies / "packs"
    packs.mkdir()
    shutil.copy(PACK, packs)
    policy = POLICY.replace("packs/", "../packs/") if "root" in spec["policy"] else POLICY
    (policies / "english-only.yaml").write_text(policy, encoding="utf-8")
    return file
