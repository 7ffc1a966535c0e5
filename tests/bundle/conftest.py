"""A small directory of policies, keys, and a signed bundle of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scope_runtime.bundle.build import build_bundle
from scope_runtime.llama import library
from tests.support.random_pack import write_control_vector

library.load()

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: NAME, owner: ops}
spec:
  features: {style: {vector: vectors/v.gguf}}
  rules: [{name: push-NAME, amplify: style, alpha: 0.5}]
"""


@dataclass(frozen=True)
class Made:
    """Policies ``a`` and ``b`` with one vector, a bundle of them, and the key that signed it."""

    policies: Path
    bundle: Path
    key: Ed25519PrivateKey


@pytest.fixture
def made(tmp_path: Path) -> Made:
    import numpy as np

    policies = tmp_path / "policies"
    (policies / "vectors").mkdir(parents=True)
    write_control_vector(policies / "vectors" / "v.gguf", {1: np.ones(8, np.float32)})
    for name in ("a", "b"):
        (policies / f"{name}.yaml").write_text(POLICY.replace("NAME", name))
    (policies / "a.test.yaml").write_text("not: part of it\n")
    (policies / "notes.txt").write_text("nor this\n")
    key = Ed25519PrivateKey.generate()
    bundle = tmp_path / "fleet.bundle"
    build_bundle(policies, bundle, "fleet", key=key)
    return Made(policies, bundle, key)
