"""Fetching: from files, folders, OCI layouts and a server; kept for a cold start, and checked again there."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scope_runtime.bundle.archive import read_archive
from scope_runtime.bundle.build import build_bundle
from scope_runtime.bundle.places import MEDIA_TYPE, ServerPlace, place, push_bundle
from scope_runtime.bundle.source import BundleSource, OnlyBundles
from scope_runtime.errors import BundleError, UsageError
from scope_runtime.policy.load import load_policies
from tests.bundle.conftest import POLICY, Made
from tests.support.bundle_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def second(made: Made, name: str = "c") -> Path:
    """Another bundle of the same fleet: one policy more."""
    (made.policies / f"{name}.yaml").write_text(POLICY.replace("NAME", name))
    path = made.bundle.with_name(f"{name}.bundle")
    build_bundle(made.policies, path, "fleet", key=made.key)
    return path


@pytest.mark.parametrize("kind", ["file", "folder", "oci", "server"])
def test_each_place_gives_what_was_put_there_once(
    kind: str, made: Made, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    where = {
        "file": str(tmp_path / "there.bundle"),
        "folder": str(tmp_path / "folder"),
        "oci": f"oci:{tmp_path / 'layout'}:stable",
        "server": server.address,
    }[kind]
    keys = [made.key.public_key()]
    push_bundle(read_archive(made.bundle, keys), where, token="secret")
    source = BundleSource(where, tmp_path / "state", keys)
    first = source.fetch()
    assert first is not None
    assert first.folder is not None
    assert first.path.read_bytes() == made.bundle.read_bytes()
    assert [policy.name for policy in load_policies(first.folder)] == ["a", "b"]
    assert source.fetch() is None

    push_bundle(read_archive(second(made), keys), where, token="secret")
    new = source.fetch()
    assert new is not None
    assert new.folder is not None
    assert [policy.name for policy in load_policies(new.folder)] == ["a", "b", "c"]
    # What ran before still lies there until the new one is kept.
    assert [policy.name for policy in load_policies(first.folder)] == ["a", "b"]
    source.keep(new)
    assert not first.folder.exists()
    assert source.fetch() is None


def test_a_cold_start_has_what_was_kept_and_checks_it_again(made: Made, tmp_path: Path) -> None:
    keys = [made.key.public_key()]
    state = tmp_path / "state"
    source = BundleSource(str(made.bundle), state, keys)
    assert source.restore() is None
    fetched = source.fetch()
    assert fetched is not None
    assert BundleSource("gone", state, keys).restore() is None  # fetched, but never kept
    source.keep(fetched)
    made.bundle.unlink()

    cold = BundleSource(str(made.bundle), state, keys)
    with pytest.raises(BundleError, match="no such file"):
        cold.fetch()
    restored = cold.restore()
    assert restored is not None
    assert restored.folder is not None
    assert restored.digest == fetched.digest
    assert [policy.name for policy in load_policies(restored.folder)] == ["a", "b"]

    # What lies unpacked is not believed: it is unpacked again.
    (restored.folder / "a.yaml").write_text("altered")
    again = cold.restore()
    assert again is not None
    assert again.folder is not None
    assert [policy.name for policy in load_policies(again.folder)] == ["a", "b"]

    kept = state / "kept.bundle"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError):
        cold.restore()
    build_bundle(made.policies, kept, "fleet", key=made.key)
    assert cold.restore() is not None
    stranger = BundleSource("gone", state, [Ed25519PrivateKey.generate().public_key()])
    with pytest.raises(BundleError, match="not configured"):
        stranger.restore()


def test_a_bad_bundle_leaves_nothing_behind_and_a_good_one_still_comes(
    made: Made, server: Server, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    good = made.bundle.read_bytes()
    source = BundleSource(server.address, state, [made.key.public_key()])
    for bad in (b"", b"nonsense", good[:-1], good.replace(b"push-a", b"pull-a")):
        server.hold(bad)
        with pytest.raises(BundleError):
            source.fetch()
        assert sorted(path.name for path in state.rglob("*")) == ["unpacked"]
    server.hold(good)
    assert source.fetch() is not None


def test_the_version_is_asked_for_and_long_polls_wait(
    made: Made, server: Server, tmp_path: Path
) -> None:
    server.hold(made.bundle.read_bytes())
    source = BundleSource(server.address, tmp_path / "state", [made.key.public_key()])
    assert source.fetch(wait_s=30) is not None
    assert "prefer" not in server.requests[-1][1]  # nothing seen yet: there is nothing to wait for
    new = second(made).read_bytes()

    def change() -> None:
        server.waiting.wait()
        server.hold(new)

    thread = threading.Thread(target=change)
    thread.start()
    fetched = source.fetch(wait_s=30)
    thread.join()
    assert fetched is not None
    assert fetched.path.read_bytes() == new
    asked = server.requests[-1][1]
    assert asked["prefer"] == "wait=30"
    assert asked["if-none-match"] == f'"{hashlib.sha256(made.bundle.read_bytes()).hexdigest()[:8]}"'
    assert asked["accept"] == MEDIA_TYPE


@pytest.mark.parametrize(
    ("etag", "new"), [("", False), ("the same", False), ("another", True)], ids=str
)
def test_a_server_that_holds_nothing_back_has_something_new_only_if_it_says_so(
    made: Made, server: Server, tmp_path: Path, etag: str, new: bool
) -> None:
    """Else whoever waits would fetch the whole bundle again and again without a pause."""
    source = BundleSource(server.address, tmp_path / "state", [made.key.public_key()])
    server.answer_with = (200, {"ETag": '"the same"'}, made.bundle.read_bytes())
    source.fetch()
    server.answer_with = (200, {"ETag": f'"{etag}"'} if etag else {}, made.bundle.read_bytes())
    assert source.wait(30) is new
    server.answer_with = (500, {}, b"")
    with pytest.raises(BundleError, match="found 500"):
        source.wait(30)


def test_what_was_fetched_while_another_is_taken_up_stays(
    made: Made, server: Server, tmp_path: Path
) -> None:
    source = BundleSource(server.address, tmp_path / "state", [made.key.public_key()])
    server.hold(made.bundle.read_bytes())
    first = source.fetch()
    server.hold(second(made).read_bytes())
    newer = source.fetch()
    assert first is not None
    assert newer is not None
    source.forget_others(first)
    for bundle in (first, newer):
        assert source.again(bundle).digest == bundle.digest
    source.forget_others(newer)
    assert not first.path.exists()


def test_what_is_no_bundle_is_refused_at_its_first_bytes(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"<html>" + bytes(3 << 20))
    source = BundleSource(str(page), tmp_path / "state", [made.key.public_key()])
    written: list[int] = []

    class Disk:
        def write(self, data: bytes) -> int:
            written.append(len(data))
            return len(data)

    with pytest.raises(BundleError, match="page: not a bundle; expected a tar that begins with"):
        source.fetch()
    with pytest.raises(BundleError):
        OnlyBundles(cast("BinaryIO", Disk()), "page").write(page.read_bytes())
    assert not written


def test_the_query_of_an_address_is_kept_out_of_messages(
    made: Made, server: Server, tmp_path: Path
) -> None:
    source = BundleSource(
        f"{server.address}?signature=secret", tmp_path / "state", [made.key.public_key()]
    )
    for status, body in ((403, b""), (200, b"nonsense")):
        server.answer_with = (status, {}, body)
        with pytest.raises(BundleError, match=r"fleet\.bundle\?…: ") as caught:
            source.fetch()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, "the server gives no bundle; found 404 Not Found"),
        (302, {"Location": "http://127.0.0.1/x"}, "found 302 Found"),
        (304, {}, "found 304 Not Modified"),
        (500, {}, "found 500 Internal Server Error"),
    ],
)
def test_answers_that_are_no_bundle(
    status: int, headers: dict[str, str], message: str, made: Made, server: Server, tmp_path: Path
) -> None:
    server.answer_with = (status, headers, b"")
    source = BundleSource(server.address, tmp_path / "state", [made.key.public_key()])
    with pytest.raises(BundleError, match=message):
        source.fetch()


def test_a_server_cannot_send_more_than_is_allowed(
    made: Made, server: Server, tmp_path: Path
) -> None:
    server.hold(made.bundle.read_bytes())
    keys = [made.key.public_key()]
    for where in (server.address, str(made.bundle)):
        source = BundleSource(where, tmp_path / "state", keys, max_bytes=1000)
        with pytest.raises(BundleError, match="too large; expected at most 1000 bytes"):
            source.fetch()


def test_a_server_cannot_send_for_ever(made: Made, server: Server) -> None:
    server.hold(made.bundle.read_bytes())
    with pytest.raises(BundleError, match=r"the server sends too slowly; found \d+ bytes in -1 s"):
        ServerPlace(server.address, whole_s=-1.0).fetch(
            io.BytesIO(), None, wait_s=0, max_bytes=1 << 20
        )


def test_a_server_that_is_not_there(made: Made, server: Server, tmp_path: Path) -> None:
    address = server.address
    server.server_close()
    source = BundleSource(address, tmp_path / "state", [made.key.public_key()])
    with pytest.raises(BundleError, match="the server cannot be asked"):
        source.fetch()


def test_a_push_without_the_right_token_is_refused(made: Made, server: Server) -> None:
    with pytest.raises(BundleError, match="the server refused it; found 401 Unauthorized"):
        push_bundle(read_archive(made.bundle), server.address, token="wrong")


def test_an_oci_layout_is_one(made: Made, tmp_path: Path) -> None:
    """Held against the image layout's specification, blob by blob."""
    layout = tmp_path / "layout"
    bundle = read_archive(made.bundle)
    push_bundle(bundle, f"oci:{layout}:one")
    push_bundle(bundle, f"oci:{layout}:two")
    push_bundle(bundle, f"oci:{layout}:one")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert (index["schemaVersion"], len(index["manifests"])) == (2, 2)
    tags = [e["annotations"]["org.opencontainers.image.ref.name"] for e in index["manifests"]]
    assert tags == ["two", "one"]

    def blob(descriptor: dict[str, Any]) -> bytes:
        algorithm, _, value = descriptor["digest"].partition(":")
        data = (layout / "blobs" / algorithm / value).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (value, descriptor["size"])
        return data

    manifest = json.loads(blob(index["manifests"][0]))
    assert manifest["schemaVersion"] == 2
    assert blob(manifest["config"]) == b"{}"
    (layer,) = manifest["layers"]
    assert blob(layer) == made.bundle.read_bytes()


def test_an_oci_layout_that_lies_is_refused(made: Made, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    push_bundle(read_archive(made.bundle), f"oci:{layout}")

    def fetch(where: str = f"oci:{layout}") -> None:
        BundleSource(where, tmp_path / "state", [made.key.public_key()]).fetch()

    fetch()
    with pytest.raises(BundleError, match="no such tag; found gone"):
        fetch(f"oci:{layout}:gone")
    index = layout / "index.json"
    sound = index.read_text()
    digest = json.loads(sound)["manifests"][0]["digest"]
    for bad, message in (
        (sound.replace(digest, "sha256:../../../etc/passwd"), "no digest of a blob"),
        (sound.replace(digest, "sha256:" + "0" * 64), "no such file"),
        ("[]", "no JSON object"),
    ):
        index.write_text(bad)
        with pytest.raises(BundleError, match=message):
            fetch()
    index.write_text(sound)
    blob = layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.write_text(blob.read_text().replace("bundle", "bungle"))
    with pytest.raises(BundleError, match="a blob is not what its name says"):
        fetch()


def test_where_a_bundle_may_come_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bundles over plain HTTP need a key"):
        BundleSource("http://127.0.0.1/x", tmp_path / "state")
    BundleSource("https://127.0.0.1/x", tmp_path / "state")
    for wrong in ("https://", "https://user:word@host/x"):
        with pytest.raises(UsageError, match="not an address of a server"):
            place(wrong)
    with pytest.raises(UsageError, match="a token is not sent over plain HTTP; found example"):
        place("http://example/x", token="secret")
    (tmp_path / "many").mkdir()
    for name in ("one.bundle", "two.bundle"):
        (tmp_path / "many" / name).touch()
    with pytest.raises(BundleError, match=r"found one.bundle, two.bundle; expected one file"):
        BundleSource(str(tmp_path / "many"), tmp_path / "state").fetch()
