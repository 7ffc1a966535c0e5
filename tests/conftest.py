"""What tests of several folders share: where things are, the command, a tiny model to steer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
CASES = Path(__file__).resolve().parent / "cases"

# How long an example takes is for benchmarks/ to say: no example fails for the machine's being slow.
settings.register_profile("scope", parent=settings(), deadline=None)
settings.load_profile("scope")

Scope = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def cases() -> Path:
    """Folder of cases that are data files."""
    return CASES


@pytest.fixture(scope="session")
def scope() -> Scope:
    """Runs the installed ``scope`` command in a process of its own, as a person would."""
    command = Path(sys.executable).with_name("scope")

    def call(
        *arguments: object, stdin: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
            check=False,
        )

    return call


@dataclass(frozen=True, slots=True)
class Tiny:
    """A random model of some kilobytes, with a policy that mutes, amplifies and watches on it."""

    model: Path
    policy: Path


TINY_POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: tiny}
spec:
  features:
    one: {pack: pack.gguf, layer: 1, id: 3}
    two: {pack: pack.gguf, layer: 2, id: 5}
    style: {vector: vector.gguf, layers: [2]}
  rules:
    - {name: quiet, mute: [one, two]}
    - {name: push, amplify: style, alpha: 0.5, unit: residual, when: {phase: generation}}
    - {name: watch, alert: two, above: -1.0}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model's weights are random, so what it says means nothing; that it is steered does."""
    from tests.support.random_model import SHAPES, make_random_model
    from tests.support.random_pack import make_random_pack

    folder = tmp_path_factory.mktemp("tiny")
    model = make_random_model("qwen3", folder).path
    make_random_pack(SHAPES["qwen3"], folder)
    policy = folder / "policy.yaml"
    policy.write_text(TINY_POLICY, encoding="utf-8")
    return Tiny(model, policy)
