from __future__ import annotations

import stat
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.revision import policy_revision
from tests.conftest import Tiny

NEAT = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\nspec: {}\n"
LOOSE = NEAT.replace("kind:", "kind:  ").replace("{name: p}", "{name: p}   # ours")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neat.yaml").write_text(NEAT)
    (tmp_path / "loose.yaml").write_text(LOOSE)
    return tmp_path


def test_behaviour_3_fmt_writes_what_is_not_laid_out_and_then_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loose.yaml").chmod(0o640)
    untouched = (folder / "neat.yaml").stat()
    assert main(["fmt"]) == 0
    assert capsys.readouterr().out == "loose.yaml: laid out\n"
    assert (folder / "loose.yaml").read_text() == NEAT.replace("{name: p}", "{name: p}  # ours")
    assert stat.S_IMODE((folder / "loose.yaml").stat().st_mode) == 0o640
    again = (folder / "neat.yaml").stat()
    assert (again.st_ino, again.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)
    assert main(["fmt", "--check", "."]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["loose.yaml", "neat.yaml"]


def test_behaviour_3_check_prints_a_diff_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fmt", "--check", "loose.yaml", "neat.yaml"]) == 1
    assert capsys.readouterr().out == (
        "--- loose.yaml\n+++ loose.yaml (laid out)\n@@ -1,4 +1,4 @@\n apiVersion: scope/v1\n"
        "-kind:   SteeringPolicy\n-metadata: {name: p}   # ours\n"
        "+kind: SteeringPolicy\n+metadata: {name: p}  # ours\n spec: {}\n"
    )
    assert (folder / "loose.yaml").read_text() == LOOSE


def test_what_is_wrong_is_said_and_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.yaml").write_text("a: [1\n")
    assert main(["fmt", "bad.yaml", "loose.yaml"]) == 1
    out = capsys.readouterr()
    assert (
        out.err
        == 'error: bad.yaml:2:1: not YAML: a list that is not closed by "]". It begins at line 1.\n'
    )
    assert out.out == "loose.yaml: laid out\n"
    assert (folder / "bad.yaml").read_text() == "a: [1\n"
    assert main(["fmt", "gone.yaml"]) == 2
    (folder / "empty").mkdir()
    assert main(["fmt", "empty"]) == 2


def test_a_link_stays_a_link(folder: Path) -> None:
    (folder / "link.yaml").symlink_to("loose.yaml")
    assert main(["fmt", "link.yaml"]) == 0
    assert (folder / "link.yaml").is_symlink()
    assert "kind: SteeringPolicy" in (folder / "loose.yaml").read_text()


def test_the_revision_stays(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("pack.gguf", "vector.gguf"):
        (tmp_path / name).symlink_to(tiny.policy.with_name(name).resolve())
    copy = tiny.policy.with_name("loose.yaml")
    text = tiny.policy.read_text()
    copy.write_text(text.replace("  rules:", "  rules:   # ours").replace("    - {", "  -   {"))
    before = policy_revision(load_policy(copy))
    assert main(["fmt", str(copy)]) == 0
    assert copy.read_text() == text.replace("  rules:", "  rules:  # ours")
    assert policy_revision(load_policy(copy)) == before == policy_revision(load_policy(tiny.policy))
    copy.unlink()
