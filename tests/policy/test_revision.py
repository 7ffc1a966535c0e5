from __future__ import annotations

import os
from pathlib import Path

import pytest

from scope_runtime.compile import check_against_packs
from scope_runtime.errors import PolicyError
from scope_runtime.policy import load_policy, policy_revision, set_revision
from scope_runtime.policy.revision import FileDigests
from tests.conftest import Tiny

TEXT = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: p}
spec:
  features: {a: {vector: v.gguf}}
  rules: [{name: r, amplify: a, alpha: 1}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "v.gguf").write_bytes(b"one")
    path = tmp_path / "policies" / "policy.yaml"
    path.write_text(TEXT)
    return path


def revision(path: Path, root: Path | None = None) -> str:
    return policy_revision(load_policy(path, root=root), FileDigests())


def test_it_is_a_digest(path: Path) -> None:
    assert revision(path).startswith("sha256:")
    assert len(revision(path)) == len("sha256:") + 64


def test_layout_place_and_root_do_not_change_it(path: Path, tmp_path: Path) -> None:
    before = revision(path)
    path.write_text(
        "# said otherwise\n" + TEXT.replace("alpha: 1", "alpha: 1.0").replace("{a: {v", "{a:  {v")
    )
    assert revision(path) == before
    assert revision(path, root=tmp_path) == before
    moved = tmp_path / "elsewhere"
    (tmp_path / "policies").rename(moved)
    assert revision(moved / "policy.yaml") == before


def test_what_the_policy_says_changes_it(path: Path) -> None:
    before = revision(path)
    path.write_text(TEXT.replace("alpha: 1", "alpha: 1.5"))
    assert revision(path) != before


def test_what_its_files_hold_changes_it(path: Path) -> None:
    before = revision(path)
    (path.parent / "v.gguf").write_bytes(b"two")
    assert revision(path) != before


def test_a_file_that_vanished_is_an_error_in_words(path: Path) -> None:
    policy = load_policy(path)
    (path.parent / "v.gguf").unlink()
    with pytest.raises(PolicyError, match="no such file"):
        policy_revision(policy, FileDigests())


def test_a_settled_file_is_hashed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, policy = FileDigests(), load_policy(path)
    later = (path.parent / "v.gguf").stat().st_ctime_ns + 10_000_000_000
    monkeypatch.setattr("scope_runtime.policy.revision.time.time_ns", lambda: later)
    assert policy_revision(policy, digests) == policy_revision(policy, digests)
    assert digests.n_hashed == 1


def test_a_young_file_is_hashed_again(path: Path) -> None:
    """It could be written once more within one tick of the file system's clock."""
    digests, policy = FileDigests(), load_policy(path)
    policy_revision(policy, digests)
    policy_revision(policy, digests)
    assert digests.n_hashed == 2


def test_a_file_whose_time_was_put_back_is_seen_to_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = path.parent / "v.gguf"
    later = pack.stat().st_ctime_ns + 10_000_000_000
    monkeypatch.setattr("scope_runtime.policy.revision.time.time_ns", lambda: later)
    digests, before = FileDigests(), pack.stat()
    first = digests.digest(pack)
    pack.write_bytes(b"two")
    os.utime(pack, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.digest(pack) != first


def test_a_set_is_known_by_its_members_in_any_order() -> None:
    assert set_revision(["sha256:a", "sha256:b"]) == set_revision(["sha256:b", "sha256:a"])
    assert set_revision(["sha256:a"]) != set_revision(["sha256:a", "sha256:b"])
    assert set_revision([]) != set_revision(["sha256:a"])


def test_a_compiled_program_bears_the_revision_of_the_files_as_it_read_them(tiny: Tiny) -> None:
    policy = load_policy(tiny.policy)
    program = check_against_packs(policy)
    assert program.revision == policy_revision(policy, FileDigests())
