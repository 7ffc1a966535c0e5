"""Opening untrusted files, writing files whole or not at all, and digests.

What is opened is a regular file, and it is opened once: size, header, contents and digest all come
from the same file descriptor, so that a file swapped between two looks cannot pass a check with one
content and act with another.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from scope_runtime.errors import Location, ScopeError

_CHUNK_BYTES = 8 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@contextmanager
def open_regular(path: str | Path, error: type[ScopeError]) -> Iterator[BinaryIO]:
    """Open a file for reading, without buffering, if it is a regular file.

    Symbolic links are followed (Kubernetes mounts files as links), but what they lead to must be a
    regular file: a pipe would wait for ever and a device has no end.

    Raises:
        ScopeError: of the class ``error``, if there is no such file, or it is no file, or may not
            be read.
    """
    location = Location(str(path))
    flags = (
        os.O_RDONLY
        | getattr(os, "O_CLOEXEC", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise error("no such file", location=location) from None
    except IsADirectoryError:
        raise error("not a file", location=location, found="a directory") from None
    except (OSError, ValueError) as reason:
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise error("cannot be opened", location=location, found=text) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise error("not a file", location=location, found=kind)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file


def read_exactly(file: BinaryIO, offset: int, n_bytes: int) -> bytearray:
    """``n_bytes`` bytes from ``offset``, fewer where the file ends. The caller bounds them."""
    data = bytearray(n_bytes)
    view = memoryview(data)
    file.seek(offset)
    done = 0
    while done < n_bytes:
        got = file.readinto(view[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    view.release()
    del data[done:]
    return data


def sha256_of(file: BinaryIO, progress: Progress | None = None) -> str:
    """SHA-256 of a whole open file, as lower-case hex."""
    total = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()
    buffer = bytearray(min(_CHUNK_BYTES, max(total, 1)))
    view = memoryview(buffer)
    file.seek(0)
    done = 0
    while got := file.readinto(view):  # type: ignore[attr-defined]
        digest.update(view[:got])
        done += got
        if progress:
            progress(done, total)
    return digest.hexdigest()


@contextmanager
def written_whole(path: str | Path, error: type[ScopeError]) -> Iterator[Path]:
    """Give a temporary path in the same folder; when the block ends well, it becomes ``path``, else
    it is removed.

    The file's bytes are on the disk before the name appears, and the name before this returns, so
    that neither a crash nor a full disk leaves half a file under ``path``. An existing file is
    replaced; a link is replaced, not followed.

    Raises:
        ScopeError: of the class ``error``, if the folder does not exist or the file cannot be
            written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        # Taken exclusively: a link that waits under the temporary name must not lead the writing
        # elsewhere.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as reason:
        raise error(
            "cannot be written",
            location=Location(str(target)),
            found=reason.strerror or str(reason),
        ) from None
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _fsync_folder(target.parent)
    except OSError as reason:
        raise error(
            "cannot be written",
            location=Location(str(target)),
            found=reason.strerror or str(reason),
        ) from reason
    finally:
        with suppress(OSError):
            temporary.unlink()


def _fsync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can open a folder; the rename itself has been done
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/scope-runtime`` or ``~/.cache/scope-runtime``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "scope-runtime"


def cached_sha256(
    path: str | Path,
    error: type[ScopeError],
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> str:
    """SHA-256 of a large file, remembered by (path, size, mtime, inode) so that it is read once.

    The cache saves time, it is no evidence: a file that was changed and given back its old time
    would pass.

    Args:
        path: the file.
        error: class of the errors raised.
        progress: called while the file is read; never, when the digest was remembered.
        cache: folder to remember digests in; `cache_folder()` if None. One that cannot be written
            is done without.
    """
    with open_regular(path, error) as file:
        status = os.fstat(file.fileno())
        identity: list[str | int] = [
            os.path.realpath(path),
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        ]
        name = hashlib.sha256(json.dumps(identity).encode("utf-8", "surrogatepass")).hexdigest()
        entry = (cache or cache_folder()) / "digests" / f"{name}.json"
        remembered = _remembered(entry, identity)
        if remembered:
            return remembered
        digest = sha256_of(file, progress)
        after = os.fstat(file.fileno())
    if [after.st_size, after.st_mtime_ns] == identity[1:3]:  # else it was written to while we read
        with suppress(OSError, ScopeError):
            entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(entry, error) as temporary:
                temporary.write_text(json.dumps({"file": identity, "sha256": digest}))
    return digest


def _remembered(entry: Path, identity: list[str | int]) -> str | None:
    try:
        with entry.open("rb") as file:
            known = json.loads(file.read(65536))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(known, dict) or known.get("file") != identity:
        return None
    digest = known.get("sha256")
    if isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
        return digest
    return None
