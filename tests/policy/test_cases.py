from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scope_runtime.errors import PolicyErrors
from scope_runtime.policy import load_policy
from tests.policy.cases import CASES, read_case


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_behaviour_1_bad_policy_gives_exactly_this_message(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_case(path)
    case.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyErrors) as refused:
        load_policy("policy.yaml")
    said = str(refused.value)
    if case.want_error is None:
        case.settle(said)
        pytest.fail(f"{path.name} had no want_error; it has now: read it, and commit it if right")
    assert said == case.want_error


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_error_names_its_place_and_is_plain_data(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_case(path)
    case.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyErrors) as refused:
        load_policy("policy.yaml")
    places = []
    for error in refused.value.errors:
        assert error.location is not None
        assert error.location.file == "policy.yaml"
        places.append((error.location.line, error.location.column))
        assert "\n" not in str(error)
        assert json.loads(json.dumps(error.fields()))["message"] == error.message
    assert places == sorted(places)
    assert len({str(error) for error in refused.value.errors}) == len(refused.value.errors)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


def test_unreadable_policy_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors) as refused:
        load_policy(tmp_path / "gone.yaml")
    gone = tmp_path / "gone.yaml"
    assert str(refused.value) == (
        f"{gone}: the policy cannot be read; found No such file or directory"
    )


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Root reads everything, so a test that runs as root goes on as nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_pack_without_permission() -> None:
    policy = read_case(next(path for path in CASES if path.stem == "path-missing"))
    # pytest's own folders are closed to everyone else.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        file = policy.lay_out(root)
        with pytest.raises(PolicyErrors):
            load_policy(file)
        file.write_bytes(policy.document.replace(b"gone", b"a"))
        (root / "packs" / "a.gguf").chmod(0)
        with (
            bound_by_permissions(),
            pytest.raises(PolicyErrors, match="the file cannot be read"),
        ):
            load_policy(file)
