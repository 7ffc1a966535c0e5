from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
from scope_runtime.packs import read_pack
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.revision import policy_revision
from tests.conftest import Tiny

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """In a folder with the tiny policy and its files, and a pair of keys."""
    folder = tmp_path / "policies"
    folder.mkdir()
    for name in ("policy.yaml", "pack.gguf", "vector.gguf"):
        (folder / name).write_bytes(tiny.policy.with_name(name).read_bytes())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["bundle", *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    code, out, _ = run("keygen", "-o", "signing.pem")
    assert code == 0
    assert out.startswith(
        "signing.pem: private, keep it to yourself\nsigning.pub.pem: public, key "
    )
    return run


def test_keys_are_for_their_owner_and_replace_nothing(call: Cli, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600
    assert call("keygen", "-o", "signing.pem") == (
        1,
        "",
        "error: signing.pem: the key exists already\n",
    )


def test_behaviour_5_build_verify_inspect_push_fetch(call: Cli, tmp_path: Path) -> None:
    code, built, _ = call("build", "policies", "-o", "fleet.bundle", "--key", "signing.pem")
    assert code == 0
    policy = load_policy(tmp_path / "policies" / "policy.yaml")
    revision = policy_revision(policy)
    assert f"revision {revision}\n" in built
    code, out, _ = call("verify", "fleet.bundle", "--key", "signing.pub.pem")
    assert (code, out) == (0, built)
    assert call("verify", "fleet.bundle")[1].endswith(", not checked: give --key\n")

    code, out, _ = call("inspect", "fleet.bundle", "-k", "signing.pub.pem", "--json")
    said = json.loads(out)
    pack = read_pack(tmp_path / "policies" / "pack.gguf")
    files = {entry["path"]: entry for entry in said["files"]}
    assert list(files) == ["pack.gguf", "policy.yaml", "vector.gguf"]
    assert files["pack.gguf"]["sha256"] == pack.digest
    assert f"{pack.model.layers} blocks, {pack.model.width} wide" in files["pack.gguf"]["model"]
    assert said["policies"] == [{"file": "policy.yaml", "name": "tiny", "revision": revision}]
    assert (said["verified"], said["revision"]) == (True, revision)
    assert "policy   policy.yaml: tiny sha256:" in call("inspect", "fleet.bundle")[1]

    place = f"oci:{tmp_path / 'layout'}:stable"
    assert call("push", "fleet.bundle", place, "-k", "signing.pub.pem")[0] == 0
    code, out, _ = call("fetch", place, "--into", "state", "-k", "signing.pub.pem")
    assert code == 0
    assert policy_revision(load_policy(Path(out.strip()) / "policy.yaml")) == revision

    (tmp_path / "layout" / "index.json").unlink()
    code, again, err = call("fetch", place, "--into", "state", "-k", "signing.pub.pem")
    assert (code, again) == (0, out)
    assert err.startswith("warning: ")
    assert "The bundle that was kept is used" in err
    code, _, err = call("fetch", place, "--into", "other", "-k", "signing.pub.pem")
    assert code == 1
    assert "the layout has no such tag; found stable" in err


def test_what_is_not_to_be_trusted_is_refused(call: Cli, tmp_path: Path) -> None:
    assert call("build", "policies", "-o", "unsigned.bundle")[0] == 0
    code, out, err = call("verify", "unsigned.bundle", "--key", "signing.pub.pem")
    assert (code, out, err) == (
        1,
        "",
        "error: unsigned.bundle: the bundle is not signed; "
        "expected a signature by a key that is configured\n",
    )
    for command in ("inspect", "push"):
        arguments = ["unsigned.bundle", *(["there.bundle"] if command == "push" else [])]
        assert call(command, *arguments, "--key", "signing.pub.pem")[0] == 1
    assert not (tmp_path / "there.bundle").exists()
    code, _, err = call("verify", "unsigned.bundle", "--key", "signing.pem")
    assert code == 1
    assert err.startswith("error: signing.pem: not an Ed25519 public key; found ")
    code, _, err = call("build", "policies", "-o", "x.bundle", "--key", "signing.pub.pem")
    assert code == 1
    assert err.startswith("error: signing.pub.pem: not an Ed25519 private key; found ")
