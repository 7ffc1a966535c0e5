"""A bundle's table of contents: what is in it, how long, and with which digest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from scope_runtime.errors import BundleError

VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 10_000
MAX_FILE_BYTES = (8 << 30) - 1
"""What the size field of a tar header holds."""
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path in the bundle, length in bytes and SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BundledPolicy:
    """One policy: its file, and the name and revision that were checked when the bundle was built."""

    file: str
    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds; files and policies ascending by path.

    Attributes:
        name: what the bundle is called.
        revision: of the policies together, as the runtime has it on record.
    """

    name: str
    revision: str
    policies: tuple[BundledPolicy, ...]
    files: tuple[Entry, ...]

    @property
    def n_bytes(self) -> int:
        """Of all files together."""
        return sum(entry.bytes for entry in self.files)

    def serialised(self) -> bytes:
        """Canonical JSON: the only spelling that is read back."""
        document = {
            "version": VERSION,
            "name": self.name,
            "revision": self.revision,
            "policies": [
                {"file": p.file, "name": p.name, "revision": p.revision} for p in self.policies
            ],
            "files": [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in self.files],
        }
        return canonical(document)


def canonical(document: Any) -> bytes:
    """JSON with sorted keys and no spaces, and a newline at the end."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest; nothing in it is trusted before its signature was checked.

    Raises:
        BundleError: it is none, or not in its canonical spelling, or names what no bundle may hold.
    """
    try:
        manifest = _manifest(json.loads(data))
        spelled = manifest.serialised()
    except BundleError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as reason:
        raise BundleError("the bundle's manifest cannot be read", found=str(reason)[:120]) from None
    if spelled != data:
        raise BundleError("the bundle's manifest is not in its canonical spelling")
    return manifest


def _manifest(raw: Any) -> Manifest:
    if raw["version"] != VERSION or type(raw["version"]) is not int:
        raise BundleError(
            "a bundle of another version", found=repr(raw["version"])[:40], expected=str(VERSION)
        )
    files = tuple(
        Entry(_text(each["path"]), _size(each), _hex(each["sha256"])) for each in raw["files"]
    )
    policies = tuple(
        BundledPolicy(_text(each["file"]), _text(each["name"]), _text(each["revision"]))
        for each in raw["policies"]
    )
    manifest = Manifest(_text(raw["name"]), _text(raw["revision"]), policies, files)
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Refuses what cannot be laid out in a folder without harm, before a byte is written.

    Raises:
        BundleError: a path that leads out or is taken twice, too many files, an unknown policy file.
    """
    if not _NAME.fullmatch(manifest.name):
        raise BundleError(
            "a bundle's name that is no name",
            found=ascii(manifest.name[:80]),
            expected="lower-case letters, digits, dots, dashes and underscores",
        )
    paths = [entry.path for entry in manifest.files]
    if not paths or len(paths) > MAX_FILES:
        raise BundleError(
            "a bundle of so many files", found=str(len(paths)), expected=f"1 to {MAX_FILES}"
        )
    for path in paths:
        check_path(path)
    if paths != sorted(set(paths)):
        raise BundleError("the bundle's files are not in order, each once")
    folders = {path[:i] for path in paths for i, c in enumerate(path) if c == "/"}
    if both := folders & set(paths):
        raise BundleError("a path that is both file and folder", found=ascii(min(both)))
    known = set(paths)
    for policy in manifest.policies:
        if policy.file not in known or "/" in policy.file:
            raise BundleError(
                "a policy that is no file at the bundle's top", found=ascii(policy.file[:120])
            )
    if not manifest.policies:
        raise BundleError("a bundle without a policy")


def check_path(path: str) -> None:
    """Refuses a path that is not plainly relative: ``..``, ``/x``, ``a//b``, ``a\\b``, ``c:``, control characters."""
    parts = path.split("/")
    bad = (
        any(part in ("", ".", "..") for part in parts)
        or any(c in "\\:" or not c.isprintable() for c in path)
        or path in (MANIFEST, SIGNATURE)
    )
    if bad:
        raise BundleError("a path that no bundle may hold", found=ascii(path[:120]))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no text")
    return value


def _size(entry: Any) -> int:
    value = entry["bytes"]
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise BundleError(
            "a file of an absurd size", found=repr(value)[:40], expected=f"0 to {MAX_FILE_BYTES}"
        )
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise TypeError(f"{value!r} is no SHA-256")
    return value
