from __future__ import annotations

from pathlib import Path

import pytest

from scope_runtime.errors import PolicyError, PolicyErrors
from scope_runtime.policy import check_files, file_path, load_policy, named_files

TEXT = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: p}
spec:
  features:
    a: {vector: VECTOR}
"""


def write(folder: Path, vector: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "policy.yaml"
    path.write_text(TEXT.replace("VECTOR", vector))
    return path


def test_a_wider_root_lets_a_policy_name_files_beside_its_directory(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "v.gguf").touch()
    path = write(tmp_path / "policies", "../packs/v.gguf")
    with pytest.raises(PolicyErrors, match="the path leads out of the policy's root"):
        load_policy(path)
    policy = load_policy(path, root=tmp_path)
    assert named_files(policy) == ("packs/v.gguf",)
    assert file_path(policy, "packs/v.gguf") == tmp_path / "packs" / "v.gguf"


def test_behaviour_7_a_root_that_does_not_hold_the_policy_refuses_its_files(tmp_path: Path) -> None:
    path = write(tmp_path / "policies", "v.gguf")
    (tmp_path / "policies" / "v.gguf").touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(PolicyErrors, match="the path leads out of the policy's root"):
        load_policy(path, root=tmp_path / "other")


def test_a_link_inside_the_root_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path, "current.gguf")
    (tmp_path / "v1.gguf").touch()
    (tmp_path / "current.gguf").symlink_to("v1.gguf")
    assert named_files(load_policy(path)) == ("current.gguf",)


def test_a_policy_reached_through_a_link_to_its_directory(tmp_path: Path) -> None:
    write(tmp_path / "real", "v.gguf")
    (tmp_path / "real" / "v.gguf").touch()
    (tmp_path / "link").symlink_to("real")
    assert load_policy(tmp_path / "link" / "policy.yaml").name == "p"


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    import os

    path = write(tmp_path, "pipe.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(PolicyErrors, match=r"not a regular file .*neither file nor directory"):
        load_policy(path)


def test_a_file_may_vanish_or_turn_into_a_link_after_loading(tmp_path: Path) -> None:
    path = write(tmp_path, "v.gguf")
    (tmp_path / "v.gguf").touch()
    policy = load_policy(path)
    check_files(policy)
    (tmp_path / "v.gguf").unlink()
    with pytest.raises(PolicyErrors, match="no such file"):
        check_files(policy)
    (tmp_path / "v.gguf").symlink_to("/etc/hosts")
    with pytest.raises(PolicyError, match="leads out of the policy's root"):
        file_path(policy, "v.gguf")
