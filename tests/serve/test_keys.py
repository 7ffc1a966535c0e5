"""API keys: what the file may say, whose a key is, and that nobody learns anything from a wrong one."""

from __future__ import annotations

import hmac
import re
import stat
from pathlib import Path

import pytest

from scope_runtime.errors import PolicyErrors, ScopeError
from scope_runtime.serve import keys
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.keys import KeyRing, bearer, digest, load_keys, new_key
from scope_runtime.serve.labels import labels_of
from tests.conftest import Scope
from tests.serve.conftest import ADMIN, KEYS, OTHER, USER


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS, encoding="utf-8")
    return path


def test_a_key_is_its_holders(file: Path) -> None:
    ring = KeyRing(file)
    holder = ring.holder(USER)
    assert holder is not None
    assert (holder.name, holder.labels) == ("acme-web", {"tenant": "acme"})
    assert ring.holder(USER + "x") is None
    assert ring.holder("x" * 10_000) is None
    assert ring.holder("") is None
    assert USER not in repr(holder)
    assert holder.sha256 not in repr(holder)


def test_a_users_key_is_no_admins_and_the_other_way_round(file: Path) -> None:
    ring = KeyRing(file)
    assert ring.holder(USER, admin=True) is None
    assert ring.holder(ADMIN) is None
    assert ring.holder(ADMIN, admin=True) is not None


def test_behaviour_26_every_key_is_compared_in_constant_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    constant_time = hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        compared.append((one, other))
        return constant_time(one, other)

    ring = KeyRing(file)
    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    for key in (USER, OTHER, "wrong"):
        compared.clear()
        ring.holder(key)
        assert [one for one, _ in compared] == [digest(k) for k in (USER, OTHER, ADMIN)]


def test_a_file_that_is_wrong_leaves_the_old_keys(file: Path) -> None:
    ring = KeyRing(file)
    file.write_text(KEYS.replace("kind: Keys", "kind: Key"), encoding="utf-8")
    with pytest.raises(PolicyErrors, match=re.escape(f"{file}:2:")):
        ring.reload()
    assert ring.holder(USER) is not None
    file.write_text(KEYS.replace(digest(USER), digest("another")), encoding="utf-8")
    ring.reload()
    assert ring.holder(USER) is None
    assert ring.holder("another") is not None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (digest(OTHER), digest(USER), "two keys have one sha256"),
        ("name: other", "name: acme-web", "two keys have one name"),
        (digest(USER), USER, "64 hexadecimal digits"),
        ("labels: {tenant: acme}", "labels: {tenant: 3}", "a text of 1 to 255 characters"),
        ("admin: true", "admim: true", "admim"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(file: Path, old: str, new: str, says: str) -> None:
    assert old in KEYS
    file.write_text(KEYS.replace(old, new), encoding="utf-8")
    with pytest.raises(ScopeError) as caught:
        load_keys(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors, match="the keys cannot be read"):
        KeyRing(tmp_path / "keys.yaml")


def test_the_command_makes_keys_and_keeps_only_digests(scope: Scope, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first = scope("api-key", "web", "--labels", "tenant=acme", "--file", file)
    assert first.returncode == 0, first.stderr
    file.write_text(file.read_text().replace("keys:", "# who may ask\nkeys:"), encoding="utf-8")
    second = scope("api-key", "ops", "--admin", "--file", file)
    key, admin = first.stdout.strip(), second.stdout.strip()
    assert len({key, admin, new_key()}) == 3
    text = file.read_text(encoding="utf-8")
    assert "# who may ask" in text
    assert key not in text
    assert admin not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = KeyRing(file)
    assert ring.holder(key).labels == {"tenant": "acme"}  # type: ignore[union-attr]
    assert ring.holder(admin, admin=True).name == "ops"  # type: ignore[union-attr]
    again = scope("api-key", "web", "--file", file)
    assert again.returncode == 2
    assert "there is a key of this name" in again.stderr


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_the_key_of_a_header(header: str | None, key: str | None) -> None:
    assert bearer(header) == key


def test_labels_come_from_the_key_and_from_what_is_allowed() -> None:
    mine = {"tenant": "acme"}
    assert labels_of(mine, None, ("team",), "x") == mine
    assert labels_of(mine, " team=a , tenant=acme", ("team",), "x") == {**mine, "team": "a"}


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("tenant=globex", 403, "label_is_set"),
        ("env=prod", 403, "label_not_allowed"),
        ("team", 400, "invalid_labels"),
        ("team=a,team=b", 400, "invalid_labels"),
        ("team=", 400, "invalid_labels"),
        ("te am=b", 400, "invalid_labels"),
        ("team=" + "a" * 5000, 400, "invalid_labels"),
    ],
)
def test_other_labels_are_refused(header: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        labels_of({"tenant": "acme"}, header, ("team", "tenant"), "x-scope-labels")
    assert (caught.value.status, caught.value.code) == (status, code)
