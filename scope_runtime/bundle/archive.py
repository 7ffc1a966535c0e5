"""A bundle on the disk: a tar of which every byte follows from the manifest and the files.

    manifest.json, manifest.sig (if signed), then the files in the manifest's order; two empty blocks.

It is written without tarfile's archive class and read without it: the reader knows from the manifest
what each header must be, byte for byte, so that no name, link, size or padding of the tar is believed.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scope_runtime.bundle.keys import MAX_SIGNATURE_BYTES, check_signature, signer
from scope_runtime.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    Entry,
    Manifest,
    parse_manifest,
)
from scope_runtime.errors import BundleError, Location, ScopeError
from scope_runtime.files import open_regular

BLOCK = 512
_CHUNK = 1 << 20
_END = bytes(2 * BLOCK)
DEFAULT_MAX_BYTES = 16 << 30


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle of which every byte was checked.

    Attributes:
        path: the archive.
        digest: ``sha256:…`` of the manifest, which names the bundle and with it every file.
        signed_by: id of the key that claims to have signed; None: unsigned.
        verified: whether the signature was held against a configured key.
        folder: where the files lie, when they were unpacked.
    """

    path: Path
    manifest: Manifest
    digest: str
    signed_by: str | None
    verified: bool
    folder: Path | None = None


def write_archive(
    out: BinaryIO, manifest: bytes, signature: bytes | None, files: Sequence[tuple[Entry, Path]]
) -> None:
    """Writes the tar; the same input gives the same bytes.

    Raises:
        BundleError: a file is not what the manifest says, or a path is too long for a tar.
    """
    _put(out, MANIFEST, manifest)
    if signature is not None:
        _put(out, SIGNATURE, signature)
    for entry, path in files:
        out.write(_header(entry.path, entry.bytes))
        digest, n_bytes = hashlib.sha256(), 0
        with open_regular(path, BundleError) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                n_bytes += len(chunk)
                out.write(chunk)
        if n_bytes != entry.bytes or digest.hexdigest() != entry.sha256:
            raise BundleError("the file changed meanwhile", location=Location(str(path)))
        out.write(_padding(n_bytes))
    out.write(_END)


def _put(out: BinaryIO, name: str, data: bytes) -> None:
    out.write(_header(name, len(data)) + data + _padding(len(data)))


def _header(name: str, n_bytes: int) -> bytes:
    """One ustar header: a regular file, mode 0644, nobody's, of 1970."""
    info = tarfile.TarInfo(name)
    info.size = n_bytes
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError as reason:
        raise BundleError(
            "a path or size that no tar holds", found=f"{name[:120]!a}: {reason}"
        ) from None


def _padding(n_bytes: int) -> bytes:
    return bytes(-n_bytes % BLOCK)


def read_archive(
    path: str | Path,
    keys: Sequence[Ed25519PublicKey] = (),
    *,
    unpack_to: Path | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Bundle:
    """Checks every byte of a bundle, and unpacks it on the way if asked to.

    Args:
        path: the archive; opened once.
        keys: trusted keys; with any, a bundle that none of them signed is refused before its files are
            looked at. Without, only the digests are checked.
        unpack_to: an empty folder of the caller's own. What is there after an error is to be thrown away.
        max_bytes: of the archive.

    Raises:
        BundleError: it is none, or damaged, altered, too large or not trusted.
    """
    with open_regular(path, BundleError) as file:
        try:
            return _read(_Reader(file, max_bytes), Path(path), keys, unpack_to)
        except ScopeError as error:
            if error.location is None:
                error.location = Location(str(path))
            raise


class _Reader:
    """Reads on, never back, and never more than is there."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self.left = os.fstat(file.fileno()).st_size
        if self.left > max_bytes:
            raise BundleError(
                "the bundle is too large",
                found=f"{self.left} bytes",
                expected=f"at most {max_bytes}",
            )

    def take(self, n_bytes: int) -> bytes:
        """Exactly so many bytes, at most a chunk."""
        if n_bytes > self.left:
            raise BundleError("the bundle is cut short")
        self.left -= n_bytes
        data = b""
        while len(data) < n_bytes:
            more = self._file.read(n_bytes - len(data))
            if not more:
                raise BundleError("the bundle is cut short")
            data += more
        return data

    def header(self) -> bytes:
        return self.take(BLOCK)

    def padding(self, n_bytes: int) -> None:
        if any(self.take(-n_bytes % BLOCK)):
            raise BundleError("something stands between the bundle's files")

    def chunks(self, n_bytes: int) -> Iterator[bytes]:
        if n_bytes > self.left:
            raise BundleError("the bundle is cut short")
        done = 0
        while done < n_bytes:
            chunk = self.take(min(_CHUNK, n_bytes - done))
            done += len(chunk)
            yield chunk


def _read(
    reader: _Reader, path: Path, keys: Sequence[Ed25519PublicKey], unpack_to: Path | None
) -> Bundle:
    raw = _small(reader, reader.header(), MANIFEST, MAX_MANIFEST_BYTES)
    header = reader.header()
    signature = None
    if header[: len(SIGNATURE) + 1] == SIGNATURE.encode() + b"\0":
        signature = _small(reader, header, SIGNATURE, MAX_SIGNATURE_BYTES)
        header = reader.header()
    if keys:
        check_signature(raw, signature, keys)
    manifest = parse_manifest(raw)
    expected = sum(BLOCK + e.bytes + len(_padding(e.bytes)) for e in manifest.files) + len(_END)
    if expected != reader.left + BLOCK:
        raise BundleError(
            "the bundle is not as long as its manifest says",
            found=f"{reader.left + BLOCK} bytes of files",
            expected=str(expected),
        )
    for entry in manifest.files:
        _file(reader, header, entry, unpack_to)
        header = reader.header()
    if any(header) or any(reader.take(BLOCK)) or reader.left:
        raise BundleError("something stands behind the bundle's last file")
    return Bundle(
        path,
        manifest,
        f"sha256:{hashlib.sha256(raw).hexdigest()}",
        signer(signature) if signature is not None else None,
        verified=bool(keys),
        folder=unpack_to,
    )


def _small(reader: _Reader, header: bytes, name: str, most: int) -> bytes:
    """A member whose length only its header tells."""
    digits = header[124:135]
    try:
        n_bytes = int(digits, 8)
    except ValueError:
        raise BundleError("not a bundle", expected=f"a tar that begins with {MANIFEST}") from None
    if not 0 < n_bytes <= most or _header(name, n_bytes) != header:
        raise BundleError("not a bundle", expected=f"a tar that begins with {MANIFEST}")
    data = reader.take(n_bytes)
    reader.padding(n_bytes)
    return data


def _file(reader: _Reader, header: bytes, entry: Entry, unpack_to: Path | None) -> None:
    if header != _header(entry.path, entry.bytes):
        raise BundleError(
            "a file's header is not as the manifest says", found=f"in place of {entry.path!a}"
        )
    digest = hashlib.sha256()
    with _opened(unpack_to, entry.path) as out:
        for chunk in reader.chunks(entry.bytes):
            digest.update(chunk)
            if out is not None:
                out.write(chunk)
    if digest.hexdigest() != entry.sha256:
        raise BundleError(
            "a file is not what the manifest says",
            found=f"{entry.path!a} with SHA-256 {digest.hexdigest()}",
            expected=entry.sha256,
        )
    reader.padding(entry.bytes)


@contextmanager
def _opened(folder: Path | None, path: str) -> Iterator[BinaryIO | None]:
    """A new file below the folder, on the disk when this ends; nothing that exists is opened."""
    if folder is None:
        yield None
        return
    target = folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644
        )
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
    except OSError as reason:
        raise BundleError(
            "the bundle cannot be unpacked",
            location=Location(str(target)),
            found=reason.strerror or str(reason),
        ) from None
