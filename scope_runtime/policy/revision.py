"""What a policy is called on record: a digest of what it says and of every file it names."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from scope_runtime.errors import Location, PolicyError
from scope_runtime.policy.files import file_path, named_files
from scope_runtime.policy.model import Policy

_CHUNK_BYTES = 1 << 20
# A file written again within a tick of its file system's clock can keep its time stamp, so the
# digests of young files are not kept.
_SETTLED_NS = 2_000_000_000
_MAX_CACHED = 4096

_Stamp = tuple[str, int, int, int, int, int]


class FileDigests:
    """SHA-256 of files, computed again only when a file's size, times or inode changed."""

    def __init__(self) -> None:
        self._known: dict[_Stamp, str] = {}
        self._lock = threading.Lock()
        self.n_hashed = 0

    def digest(self, path: str | os.PathLike[str]) -> str:
        """``sha256:…`` of the file's bytes. Raises OSError."""
        name = os.fspath(path)
        with Path(name).open("rb") as stream:
            stamp = _stamp(name, os.fstat(stream.fileno()))
            with self._lock:
                if stamp in self._known:
                    return self._known[stamp]
            sha = hashlib.sha256()
            while chunk := stream.read(_CHUNK_BYTES):
                sha.update(chunk)
            after = _stamp(name, os.fstat(stream.fileno()))
        digest = f"sha256:{sha.hexdigest()}"
        with self._lock:
            self.n_hashed += 1
            if stamp == after and time.time_ns() - max(stamp[2], stamp[3]) > _SETTLED_NS:
                if len(self._known) >= _MAX_CACHED:
                    self._known.clear()
                self._known[stamp] = digest
        return digest


_shared = FileDigests()


def policy_revision(policy: Policy, digests: FileDigests | None = None) -> str:
    """``sha256:…`` of the policy's canonical form together with the digest of every file it names.

    Raises:
        PolicyError: a file that the policy names is gone, cannot be read, or lies outside its root.
    """
    digests = digests or _shared
    files = {}
    for name in named_files(policy):
        try:
            files[name] = digests.digest(file_path(policy, name))
        except OSError as error:
            raise PolicyError(
                "the file cannot be read",
                location=Location(policy.file),
                found=f"{name}: {error.strerror}",
            ) from None
    return revision_of(policy, files)


def revision_of(policy: Policy, files: Mapping[str, str]) -> str:
    """The revision, given the digest (``sha256:…``) of every file that the policy names, by the name it uses.

    Whoever has opened the files says with this what was in them then, whatever they hold now.
    """
    own_directory = Path(policy.file).parent
    # As seen from the policy file, so that a wider root does not change the revision.
    seen = {
        os.path.relpath(Path(policy.root, name), own_directory).replace(os.sep, "/"): files[name]
        for name in named_files(policy)
    }
    return _sha256({"policy": policy.canonical, "files": seen})


def set_revision(revisions: Iterable[str]) -> str:
    """The revision of several policies in force together: the digest of their sorted revisions."""
    return _sha256(sorted(revisions))


def _stamp(name: str, status: os.stat_result) -> _Stamp:
    return (
        str(Path(name).absolute()),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}"
