"""Where bundles lie: a file, a folder, an OCI image layout, or a server. Each gives bytes; none is believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import httpx

from scope_runtime.bundle.archive import Bundle
from scope_runtime.bundle.manifest import canonical
from scope_runtime.errors import BundleError, Location, UsageError
from scope_runtime.files import open_regular, read_exactly, written_whole

SUFFIX = ".bundle"
MEDIA_TYPE = "application/vnd.scope-runtime.bundle.v1.tar"
_OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_EMPTY = "application/vnd.oci.empty.v1+json"
_TAG = "org.opencontainers.image.ref.name"
_MAX_JSON_BYTES = 4 << 20
_CHUNK = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECT_S = 10.0
_SLACK_S = 30.0
_WHOLE_S = 3600.0
"""A server that sends a byte now and then must not hold us for ever."""


class Place(Protocol):
    """Somewhere that holds one bundle at a time."""

    def fetch(
        self, out: BinaryIO, seen: str | None, *, wait_s: float, max_bytes: int
    ) -> str | None:
        """Writes the bundle's bytes, unless it is the one that was seen.

        Args:
            out: where they go.
            seen: what an earlier fetch returned: its version. None: whatever is there is wanted.
            wait_s: how long the place may hold the answer back for a new one (long poll).
            max_bytes: most bytes to write.

        Returns:
            The version, an opaque text; None: nothing new, and nothing was written.

        Raises:
            BundleError: there is none, or it cannot be had.
        """

    def push(self, bundle: Path, name: str) -> str:
        """Puts a bundle there, whole or not at all; returns where, in words. Raises BundleError."""


def is_server(text: str) -> bool:
    """Whether a place is a server, by its name."""
    return text.startswith(("http://", "https://"))


def shown(text: str) -> str:
    """A place for messages and records: what stands after the ``?`` of an address is often a secret."""
    address, mark, _ = text.partition("?")
    return f"{address}?…" if mark and is_server(text) else text


def place(text: str, *, token: str | None = None, ca: Path | None = None) -> Place:
    """The place that a text names: ``https://…``, ``oci:FOLDER[:TAG]``, or a path.

    Args:
        token: sent to servers as ``Authorization: Bearer``.
        ca: certificates (PEM) that servers are trusted by, instead of those of this machine.
    """
    if is_server(text):
        parts = urlsplit(text)
        if not parts.hostname or parts.username or parts.password:
            raise UsageError("not an address of a server", found=parts.hostname or text)
        if token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise UsageError(
                "a token is not sent over plain HTTP", found=parts.hostname, expected="https://"
            )
        return ServerPlace(text, token, ca)
    if text.startswith("oci:"):
        folder, _, tag = text.removeprefix("oci:").rpartition(":")
        if not folder or "/" in tag:
            folder, tag = text.removeprefix("oci:"), "latest"
        return OciPlace(Path(folder), tag)
    return FilePlace(Path(text))


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A bundle's file, or a folder that holds one ``*.bundle``."""

    path: Path

    def _file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        found = sorted(p for p in self.path.iterdir() if p.suffix == SUFFIX and p.name[0] != ".")
        if len(found) != 1:
            raise BundleError(
                "not one bundle in the folder",
                location=Location(str(self.path)),
                found=", ".join(p.name for p in found) or "none",
                expected=f"one file that ends in {SUFFIX}",
            )
        return found[0]

    def fetch(
        self, out: BinaryIO, seen: str | None, *, wait_s: float, max_bytes: int
    ) -> str | None:
        with open_regular(self._file(), BundleError) as file:
            version = _digest(file, max_bytes, str(self.path))
            if version == seen:
                return None
            file.seek(0)
            _copy(file, out, max_bytes, str(self.path))
        return version

    def push(self, bundle: Path, name: str) -> str:
        target = self.path / f"{name}{SUFFIX}" if self.path.is_dir() else self.path
        with written_whole(target, BundleError) as temporary:
            shutil.copyfile(bundle, temporary)
        return str(target)


@dataclass(frozen=True, slots=True)
class OciPlace:
    """A tag in an OCI image layout: the bundle is the manifest's one layer."""

    folder: Path
    tag: str

    def fetch(
        self, out: BinaryIO, seen: str | None, *, wait_s: float, max_bytes: int
    ) -> str | None:
        digest = self._tagged()
        if digest is None:
            raise self._error("the layout has no such tag", found=self.tag)
        if digest == seen:
            return None
        manifest = self._json(self._blob(digest), digest)
        layers = manifest.get("layers")
        wanted = [x for x in layers if isinstance(x, dict)] if isinstance(layers, list) else []
        if len(wanted) != 1 or wanted[0].get("mediaType") != MEDIA_TYPE:
            raise self._error("not a bundle's manifest", found=digest)
        with open_regular(self._blob(wanted[0].get("digest")), BundleError) as file:
            if f"sha256:{_digest(file, max_bytes, str(self.folder))}" != wanted[0]["digest"]:
                raise self._error("a blob is not what its name says", found=wanted[0]["digest"])
            file.seek(0)
            _copy(file, out, max_bytes, str(self.folder))
        return digest

    def push(self, bundle: Path, name: str) -> str:
        blobs = self.folder / "blobs" / "sha256"
        try:
            blobs.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise self._error("cannot be written", found=reason.strerror) from None
        with open_regular(bundle, BundleError) as file:
            size = os.fstat(file.fileno()).st_size
            layer = _digest(file, size, str(bundle))
        if not (blobs / layer).exists():
            with written_whole(blobs / layer, BundleError) as temporary:
                shutil.copyfile(bundle, temporary)
        config = self._put(b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": _OCI_MANIFEST,
            "artifactType": MEDIA_TYPE,
            "config": {"mediaType": _OCI_EMPTY, **config},
            "layers": [{"mediaType": MEDIA_TYPE, "digest": f"sha256:{layer}", "size": size}],
            "annotations": {"org.opencontainers.image.title": f"{name}{SUFFIX}"},
        }
        entry = {
            "mediaType": _OCI_MANIFEST,
            **self._put(canonical(manifest)),
            "annotations": {_TAG: self.tag},
        }
        others = [each for each in self._index() if _tag(each) != self.tag]
        index = {"schemaVersion": 2, "mediaType": _OCI_INDEX, "manifests": [*others, entry]}
        self._write("oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))
        self._write("index.json", canonical(index))
        return f"oci:{self.folder}:{self.tag}"

    def _put(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self._write(f"blobs/sha256/{digest}", data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def _write(self, name: str, data: bytes) -> None:
        with written_whole(self.folder / name, BundleError) as temporary:
            temporary.write_bytes(data)

    def _index(self) -> list[dict[str, Any]]:
        if not (self.folder / "index.json").exists():
            return []
        entries = self._json(self.folder / "index.json").get("manifests")
        return (
            [each for each in entries if isinstance(each, dict)]
            if isinstance(entries, list)
            else []
        )

    def _tagged(self) -> str | None:
        digests = [each.get("digest") for each in self._index() if _tag(each) == self.tag]
        return digests[0] if digests and isinstance(digests[0], str) else None

    def _blob(self, digest: object) -> Path:
        """A digest out of the layout names a file: only 64 hex digits may do so."""
        text = digest if isinstance(digest, str) else ""
        value = text.removeprefix("sha256:")
        if (
            not text.startswith("sha256:")
            or len(value) != 64
            or set(value) - set("0123456789abcdef")
        ):
            raise self._error("no digest of a blob", found=ascii(digest)[:80])
        return self.folder / "blobs" / "sha256" / value

    def _json(self, path: Path, digest: str | None = None) -> dict[str, Any]:
        with open_regular(path, BundleError) as file:
            data = bytes(
                read_exactly(file, 0, min(os.fstat(file.fileno()).st_size, _MAX_JSON_BYTES))
            )
        if digest is not None and f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise self._error("a blob is not what its name says", found=digest)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise BundleError("no JSON object", location=Location(str(path)))
        return document

    def _error(self, message: str, found: str | None = None) -> BundleError:
        return BundleError(message, location=Location(str(self.folder)), found=found)


def _tag(entry: dict[str, Any]) -> object:
    annotations = entry.get("annotations")
    return annotations.get(_TAG) if isinstance(annotations, dict) else None


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """An address that answers GET with a bundle and its ETag, 304 where ``If-None-Match`` still fits.

    A server that can hold an answer back until there is a new bundle does so for ``Prefer: wait=SECONDS``.
    Redirects are not followed: they would lead to a place that nobody configured.
    """

    address: str
    token: str | None = None
    ca: Path | None = None
    whole_s: float = _WHOLE_S

    def _trust(self) -> ssl.SSLContext | bool:
        """The configured certificates; without them those of ``SSL_CERT_FILE``, or of this machine."""
        if self.ca is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as reason:
            raise BundleError(
                "no certificates",
                location=Location(str(self.ca)),
                found=reason.strerror or str(reason),
                expected="a PEM file",
            ) from None

    @contextmanager
    def _client(self, wait_s: float) -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        limits = httpx.Timeout(wait_s + _SLACK_S, connect=_CONNECT_S)
        with httpx.Client(
            timeout=limits, headers=headers, follow_redirects=False, verify=self._trust()
        ) as client:
            try:
                yield client
            except httpx.HTTPError as reason:
                raise BundleError(
                    "the server cannot be asked",
                    location=Location(shown(self.address)),
                    found=str(reason) or type(reason).__name__,
                ) from None

    def fetch(
        self, out: BinaryIO, seen: str | None, *, wait_s: float, max_bytes: int
    ) -> str | None:
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity"}
        if seen is not None:
            headers["If-None-Match"] = seen
            if wait_s > 0:
                headers["Prefer"] = f"wait={wait_s:.0f}"
        with (
            self._client(wait_s) as client,
            client.stream("GET", self.address, headers=headers) as answer,
        ):
            if answer.status_code == httpx.codes.NOT_MODIFIED and seen is not None:
                return None
            if answer.status_code != httpx.codes.OK:
                raise self._refused(answer)
            digest, n_bytes, ends = hashlib.sha256(), 0, time.monotonic() + self.whole_s
            for chunk in answer.iter_raw(_CHUNK):
                n_bytes += len(chunk)
                if n_bytes > max_bytes:
                    raise _too_large(shown(self.address), max_bytes)
                if time.monotonic() > ends:
                    raise BundleError(
                        "the server sends too slowly",
                        location=Location(shown(self.address)),
                        found=f"{n_bytes} bytes in {self.whole_s:g} s",
                    )
                digest.update(chunk)
                out.write(chunk)
            # A server without ETags is asked again each time; the content still tells old from new.
            version = answer.headers.get("ETag") or f'"{digest.hexdigest()}"'
        return None if version == seen else version

    def wait(self, seen: str, wait_s: float) -> bool:
        """Waits until the server may have another version than the one seen; a hint, of which nothing is used.

        Raises:
            BundleError: it cannot be asked, or refuses.
        """
        headers = {"If-None-Match": seen, "Prefer": f"wait={wait_s:.0f}", "Accept": MEDIA_TYPE}
        with (
            self._client(wait_s) as client,
            client.stream("GET", self.address, headers=headers) as answer,
        ):
            if answer.status_code == httpx.codes.NOT_MODIFIED:
                return False
            if answer.status_code != httpx.codes.OK:
                raise self._refused(answer)
            # A server that knows no 304 says 200 each time, and has then held nothing back.
            return bool(answer.headers.get("ETag", seen) != seen)

    def push(self, bundle: Path, name: str) -> str:
        with self._client(0.0) as client, bundle.open("rb") as file:
            answer = client.put(self.address, content=file, headers={"Content-Type": MEDIA_TYPE})
        if not answer.is_success:
            raise self._refused(answer)
        return shown(self.address)

    def _refused(self, answer: httpx.Response) -> BundleError:
        return BundleError(
            "the server gives no bundle"
            if answer.request.method == "GET"
            else "the server refused it",
            location=Location(shown(self.address)),
            found=f"{answer.status_code} {answer.reason_phrase}",
        )


def _digest(file: BinaryIO, max_bytes: int, where: str) -> str:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise _too_large(where, max_bytes)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _copy(file: BinaryIO, out: BinaryIO, max_bytes: int, where: str) -> None:
    n_bytes = 0
    while chunk := file.read(_CHUNK):
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise _too_large(where, max_bytes)
        out.write(chunk)


def _too_large(where: str, max_bytes: int) -> BundleError:
    return BundleError(
        "the bundle is too large", location=Location(where), expected=f"at most {max_bytes} bytes"
    )


def push_bundle(bundle: Bundle, to: str, *, token: str | None = None) -> str:
    """Puts a checked bundle somewhere; returns where, in words. Raises BundleError."""
    return place(to, token=token).push(bundle.path, bundle.manifest.name)
