"""Bundles: the same input gives the same bytes, tar reads them, and no byte of them can be changed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scope_runtime.bundle.archive import BLOCK, read_archive, write_archive
from scope_runtime.bundle.build import build_bundle
from scope_runtime.bundle.keys import key_id, sign
from scope_runtime.bundle.manifest import MAX_FILES, Entry, canonical, parse_manifest
from scope_runtime.errors import BundleError, PolicyErrors, ScopeError
from scope_runtime.policy.load import load_policies
from scope_runtime.policy.revision import policy_revision, set_revision
from tests.bundle.conftest import Made


def test_a_bundle_is_a_tar_of_the_policies_and_what_they_name(made: Made) -> None:
    """Read by the standard library's tarfile, which shares nothing with our reader."""
    with tarfile.open(made.bundle) as tar:
        members = tar.getmembers()
        content = {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    assert [m.name for m in members] == [
        "manifest.json",
        "manifest.sig",
        "a.yaml",
        "b.yaml",
        "vectors/v.gguf",
    ]
    assert all((m.isreg(), m.mtime, m.uid, m.mode) == (True, 0, 0, 0o644) for m in members)
    manifest = json.loads(content["manifest.json"])
    for entry in manifest["files"]:
        data = content[entry["path"]]
        assert (made.policies / entry["path"]).read_bytes() == data
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    revisions = {p.name: policy_revision(p) for p in load_policies(made.policies)}
    assert {p["name"]: p["revision"] for p in manifest["policies"]} == revisions
    assert manifest["revision"] == set_revision(revisions.values())
    signature = json.loads(content["manifest.sig"])
    assert signature["key"] == key_id(made.key.public_key())


def test_the_same_input_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    for path in made.policies.rglob("*"):
        path.chmod(0o700)
    build_bundle(made.policies, tmp_path / "again.bundle", "fleet", key=made.key)
    assert (tmp_path / "again.bundle").read_bytes() == made.bundle.read_bytes()


def test_what_comes_out_is_what_went_in(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    bundle = read_archive(made.bundle, [made.key.public_key()], unpack_to=folder)
    assert (bundle.verified, bundle.signed_by) == (True, key_id(made.key.public_key()))
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "a.yaml",
        "b.yaml",
        "vectors/v.gguf",
    ]
    revisions = [policy_revision(policy) for policy in load_policies(folder)]
    assert bundle.manifest.revision == set_revision(revisions)


def test_every_flipped_byte_is_refused(made: Made, tmp_path: Path) -> None:
    data = made.bundle.read_bytes()
    keys = [made.key.public_key()]
    altered = tmp_path / "altered.bundle"
    altered.write_bytes(data)
    with altered.open("r+b", buffering=0) as file:
        for i in range(len(data)):
            file.seek(i)
            file.write(bytes([data[i] ^ (1 << (i % 8))]))
            with pytest.raises(BundleError):
                read_archive(altered, keys)
            file.seek(i)
            file.write(data[i : i + 1])
    read_archive(altered, keys)


def test_every_flipped_bit_of_manifest_and_signature_is_refused(made: Made, tmp_path: Path) -> None:
    data = made.bundle.read_bytes()
    keys = [made.key.public_key()]
    altered = tmp_path / "altered.bundle"
    end = data.index(b"apiVersion")
    for i in range(0, end, 7):
        for bit in range(8):
            altered.write_bytes(data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :])
            with pytest.raises(BundleError):
                read_archive(altered, keys)


def test_cut_and_lengthened_bundles_are_refused(made: Made, tmp_path: Path) -> None:
    data = made.bundle.read_bytes()
    altered = tmp_path / "altered.bundle"
    for n in [*range(0, len(data), 97), len(data) - 1]:
        altered.write_bytes(data[:n])
        with pytest.raises(BundleError):
            read_archive(altered)
    for more in (b"\0", bytes(512), b"x", data):
        altered.write_bytes(data + more)
        with pytest.raises(BundleError):
            read_archive(altered)


def test_who_may_sign(made: Made, tmp_path: Path) -> None:
    stranger = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(BundleError) as foreign:
        read_archive(made.bundle, [stranger])
    assert str(foreign.value) == (
        f"{made.bundle}: the bundle is signed by a key that is not configured; "
        f"found {key_id(made.key.public_key())}; expected {key_id(stranger)}"
    )
    assert read_archive(made.bundle, [stranger, made.key.public_key()]).verified
    assert not read_archive(made.bundle).verified
    unsigned = tmp_path / "unsigned.bundle"
    build_bundle(made.policies, unsigned, "fleet")
    assert read_archive(unsigned).signed_by is None
    with pytest.raises(BundleError, match="the bundle is not signed"):
        read_archive(unsigned, [stranger])


def test_a_signature_of_another_manifest_is_refused(made: Made, tmp_path: Path) -> None:
    (made.policies / "b.yaml").unlink()
    other = tmp_path / "other.bundle"
    build_bundle(made.policies, other, "fleet", key=made.key)
    with tarfile.open(made.bundle) as tar:
        old = tar.extractfile("manifest.sig").read()  # type: ignore[union-attr]
    with tarfile.open(other) as tar:
        new = tar.extractfile("manifest.sig").read()  # type: ignore[union-attr]
    other.write_bytes(other.read_bytes().replace(new, old))
    read_archive(other)
    with pytest.raises(BundleError, match="does not fit its manifest"):
        read_archive(other, [made.key.public_key()])


# -- signed on purpose, and harmful all the same

FILE = b"x"
ENTRY = {"path": "a.yaml", "bytes": 1, "sha256": hashlib.sha256(FILE).hexdigest()}
GOOD: dict[str, Any] = {
    "version": 1,
    "name": "n",
    "revision": "r",
    "policies": [{"file": "a.yaml", "name": "a", "revision": "r"}],
    "files": [ENTRY],
}


def with_path(path: str) -> dict[str, Any]:
    files = sorted([ENTRY, {**ENTRY, "path": path}], key=lambda entry: str(entry["path"]))
    return {**GOOD, "files": files}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        *[
            (with_path(path), "a path that no bundle may hold")
            for path in (
                "../x",
                "a/../x",
                "/etc/x",
                "a//x",
                "./x",
                "a/.",
                "",
                "a\\x",
                "c:x",
                "a\nx",
                "a\u202ex",
                "a/",
                "manifest.json",
                "manifest.sig",
            )
            if path
        ],
        (with_path("a.yaml/x"), "both file and folder"),
        ({**GOOD, "files": [ENTRY, ENTRY]}, "not in order, each once"),
        ({**GOOD, "files": [{**ENTRY, "path": "b"}, ENTRY]}, "not in order, each once"),
        ({**GOOD, "files": []}, "a bundle of so many files; found 0"),
        (
            {**GOOD, "files": [{**ENTRY, "path": f"{i:06}"} for i in range(MAX_FILES + 1)]},
            f"found {MAX_FILES + 1}; expected 1 to {MAX_FILES}",
        ),
        ({**GOOD, "files": [{**ENTRY, "bytes": -1}]}, "absurd size"),
        ({**GOOD, "files": [{**ENTRY, "bytes": 1 << 60}]}, "absurd size"),
        ({**GOOD, "files": [{**ENTRY, "bytes": 1.0}]}, "absurd size"),
        ({**GOOD, "files": [{**ENTRY, "sha256": "AB" * 32}]}, "cannot be read"),
        ({**GOOD, "version": 2}, "another version; found 2; expected 1"),
        ({**GOOD, "version": True}, "another version"),
        ({**GOOD, "name": "../n"}, "a bundle's name that is no name"),
        ({**GOOD, "extra": 1}, "not in its canonical spelling"),
        ({**GOOD, "policies": []}, "a bundle without a policy"),
        (
            {**GOOD, "policies": [{"file": "b.yaml", "name": "a", "revision": "r"}]},
            "a policy that is no file at the bundle's top",
        ),
        ({"version": 1}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_a_manifest_that_could_do_harm_is_refused(manifest: Any, message: str) -> None:
    assert parse_manifest(canonical(GOOD)).files[0].path == "a.yaml"
    with pytest.raises(BundleError, match=message):
        parse_manifest(canonical(manifest))


@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, b"\xff", b"1", canonical(GOOD).replace(b",", b", ", 1)]
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def packed(tmp_path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    """A tar by Python's own writer with a sound, unsigned manifest and a file that is not what it should be."""
    raw = canonical(GOOD)
    path = tmp_path / "by-hand.bundle"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("manifest.json", raw), ("a.yaml", FILE)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name == "a.yaml":
                change(info)
            tar.addfile(info, io.BytesIO(data))
    # The standard library fills up to 10,240 bytes; ours ends after two empty blocks.
    size = 2 * BLOCK + BLOCK * (1 + (len(raw) - 1) // BLOCK) + BLOCK + 2 * BLOCK
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_the_tar_itself_is_not_believed(tmp_path: Path) -> None:
    assert read_archive(packed(tmp_path, lambda info: None)).manifest.name == "n"

    def becomes(**fields: Any) -> Callable[[tarfile.TarInfo], None]:
        def change(info: tarfile.TarInfo) -> None:
            for name, value in fields.items():
                setattr(info, name, value)

        return change

    for change in (
        becomes(name="../a.yaml"),
        becomes(name="/a.yaml"),
        becomes(name="b.yaml"),
        becomes(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        becomes(type=tarfile.LNKTYPE, linkname="manifest.json"),
        becomes(type=tarfile.FIFOTYPE),
        becomes(mode=0o4755),
        becomes(uid=1000),
        becomes(mtime=1),
    ):
        with pytest.raises(BundleError):
            read_archive(packed(tmp_path, change))


def test_sizes_are_checked_before_anything_is_allocated(made: Made, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the bundle is too large"):
        read_archive(made.bundle, max_bytes=1000)
    data = bytearray(made.bundle.read_bytes())
    huge = tarfile.TarInfo("manifest.json")
    huge.size = 1 << 32
    data[:BLOCK] = huge.tobuf(tarfile.USTAR_FORMAT)
    altered = tmp_path / "altered.bundle"
    altered.write_bytes(data)
    with pytest.raises(BundleError, match="not a bundle"):
        read_archive(altered)
    claimed = {**GOOD, "files": [{**ENTRY, "bytes": 1 << 32}]}
    with altered.open("wb") as out:
        raw = canonical(claimed)
        write_archive(out, raw, sign(raw, made.key), [])
    with pytest.raises(BundleError, match="not as long as its manifest says"):
        read_archive(altered, [made.key.public_key()], unpack_to=tmp_path)


def test_nothing_that_exists_is_written_to(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (folder / "a.yaml").symlink_to(outside)
    with pytest.raises(BundleError, match="cannot be unpacked"):
        read_archive(made.bundle, unpack_to=folder)
    assert outside.read_text() == "mine"


def test_long_and_foreign_paths_come_back(made: Made, tmp_path: Path) -> None:
    long = f"{'folder/' * 17}väktör-向量.gguf"
    target = made.policies / long
    target.parent.mkdir(parents=True)
    target.write_bytes((made.policies / "vectors" / "v.gguf").read_bytes())
    policy = made.policies / "a.yaml"
    policy.write_text(policy.read_text().replace("vectors/v.gguf", long))
    out, folder = tmp_path / "long.bundle", tmp_path / "out"
    folder.mkdir()
    build_bundle(made.policies, out, "fleet", key=made.key)
    read_archive(out, [made.key.public_key()], unpack_to=folder)
    assert (folder / long).read_bytes() == target.read_bytes()
    with tarfile.open(out) as tar:
        assert long in tar.getnames()
    too_long = made.policies / ("x" * 200)
    too_long.write_bytes(target.read_bytes())
    policy.write_text(policy.read_text().replace(long, too_long.name))
    with pytest.raises(BundleError, match="a path or size that no tar holds"):
        build_bundle(made.policies, out, "fleet", key=made.key)


def test_a_policy_that_is_wrong_is_not_bundled(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "new.bundle"
    (made.policies / "b.yaml").write_text("nonsense: true\n")
    with pytest.raises(PolicyErrors):
        build_bundle(made.policies, out, "fleet")
    (made.policies / "b.yaml").unlink()
    with pytest.raises(ScopeError, match="a bundle's name that is no name"):
        build_bundle(made.policies, out, "no name")
    assert not out.exists()
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_file_that_changes_while_it_is_packed_is_noticed(made: Made) -> None:
    entry = Entry("a.yaml", 3, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(BundleError, match="the file changed meanwhile"):
        write_archive(io.BytesIO(), b"{}", None, [(entry, made.policies / "a.yaml")])
