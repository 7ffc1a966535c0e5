"""Where a runtime gets its policies from when they come as bundles: fetched, checked, unpacked, kept.

source = BundleSource("https://…/fleet.bundle", Path("/var/lib/scope"), keys)
bundle = source.restore()                 # a cold start: the last one that was kept, checked again
bundle = source.fetch(wait_s=60)          # a new one, or None
…load bundle.folder…                      # a directory of policies, as any other
source.keep(bundle)                       # only after its program is active
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scope_runtime.bundle.archive import DEFAULT_MAX_BYTES, Bundle, read_archive
from scope_runtime.bundle.manifest import MANIFEST
from scope_runtime.bundle.places import ServerPlace, place, shown
from scope_runtime.errors import BundleError, Location, ScopeError, UsageError
from scope_runtime.files import written_whole

_KEPT = "kept.bundle"
_UNPACKED = "unpacked"


class BundleSource:
    """One place to fetch from, and one folder of our own to keep what was good.

    Nothing of a bundle reaches ``folder`` before its signature and every byte were checked. One thread may fetch
    while another uses what was fetched before; not for use by several processes at once.

    Args:
        where: see `place`.
        folder: made if it is not there, for its owner alone.
        keys: trusted; empty accepts unsigned bundles, which a plain ``http://`` place may not give.
        token: for a server.
        ca: certificates (PEM) that a server is trusted by, instead of those of this machine.
        max_bytes: of one bundle.

    Raises:
        UsageError: an unprotected place without a key.
        BundleError: the folder cannot be made.
    """

    def __init__(
        self,
        where: str,
        folder: Path,
        keys: Sequence[Ed25519PublicKey] = (),
        *,
        token: str | None = None,
        ca: Path | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        if where.startswith("http://") and not keys:
            raise UsageError(
                "bundles over plain HTTP need a key",
                found=shown(where),
                expected="a public key, or https://",
            )
        self._where = where
        self._place = place(where, token=token, ca=ca)
        self._folder = folder
        self._keys = tuple(keys)
        self._max_bytes = max_bytes
        self._seen: str | None = None
        self._files = threading.Lock()  # held while files are moved, never while somebody is asked
        self._newest: Bundle | None = None
        try:
            (folder / _UNPACKED).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as reason:
            raise BundleError(
                "the folder cannot be made", location=Location(str(folder)), found=reason.strerror
            ) from None

    def fetch(self, wait_s: float = 0.0) -> Bundle | None:
        """Fetches, checks and unpacks what is there, if it is new.

        Args:
            wait_s: how long a server may hold its answer back until there is something new.

        Returns:
            A bundle with its ``folder``; None: the same as before.

        Raises:
            BundleError: it cannot be had, or is not to be trusted. The next fetch asks anew.
        """
        with self._temporary() as temporary:
            archive = temporary / "fetched"
            with archive.open("wb") as out:
                version = self._place.fetch(
                    cast("BinaryIO", OnlyBundles(out, shown(self._where))),
                    self._seen,
                    wait_s=wait_s,
                    max_bytes=self._max_bytes,
                )
            if version is None:
                return None
            with self._files:
                try:
                    bundle = self._unpacked(archive, temporary)
                except ScopeError as error:
                    if error.location in (
                        None,
                        Location(str(archive)),
                    ):  # a name that means nothing to anybody
                        error.location = Location(shown(self._where))
                    raise
                waiting = self._waiting(bundle)
                archive.replace(waiting)
                self._newest = replace(bundle, path=waiting)
        self._seen = version
        return self._newest

    def wait(self, wait_s: float) -> bool:
        """Waits for at most so long until there may be a new bundle. Only for a server, and after a fetch.

        Raises:
            BundleError: it cannot be asked.
        """
        if self._seen is None or not isinstance(self._place, ServerPlace):
            return True
        return self._place.wait(self._seen, wait_s)

    def again(self, bundle: Bundle) -> Bundle:
        """A bundle of `fetch`, checked again from its first byte and unpacked anew.

        Raises:
            BundleError: it was altered since.
        """
        with self._files, self._temporary() as temporary:
            return self._unpacked(bundle.path, temporary)

    def restore(self) -> Bundle | None:
        """The bundle that was kept, checked again from its first byte; None: none was kept.

        Raises:
            BundleError: it is damaged, or no configured key signed it.
        """
        kept = self._folder / _KEPT
        if not kept.exists():
            return None
        with self._temporary() as temporary:
            return self._unpacked(kept, temporary)

    def keep(self, bundle: Bundle) -> None:
        """Makes a bundle of `fetch` the one that `restore` gives, and drops what was unpacked before.

        Call it when the bundle's program is active, never before.

        Raises:
            BundleError: it cannot be written; the one kept before is still kept.
        """
        if bundle.path != self._folder / _KEPT:
            with written_whole(self._folder / _KEPT, BundleError) as temporary:
                shutil.copyfile(bundle.path, temporary)
        self.forget_others(bundle, fetched=True)

    def forget_others(self, bundle: Bundle, *, fetched: bool = False) -> None:
        """Drops what was unpacked of other bundles, and what was fetched of them; with ``fetched`` of this one too.

        One that was fetched meanwhile stays.
        """
        with self._files:
            newest = self._newest or bundle
            folders = {each.folder.name for each in (bundle, newest) if each.folder is not None}
            paths = {each.path for each in (bundle, newest)} - ({bundle.path} if fetched else set())
            for other in (self._folder / _UNPACKED).iterdir():
                if other.name not in folders:
                    shutil.rmtree(other, ignore_errors=True)
            for waiting in self._folder.glob("*.fetched"):
                if waiting not in paths:
                    with suppress(OSError):
                        waiting.unlink()

    def _waiting(self, bundle: Bundle) -> Path:
        return self._folder / f"{bundle.digest.removeprefix('sha256:')}.fetched"

    def _unpacked(self, archive: Path, temporary: Path) -> Bundle:
        """Checks the archive into a folder that then gets the digest's name."""
        unpacked = temporary / "files"
        unpacked.mkdir(mode=0o700)
        bundle = read_archive(archive, self._keys, unpack_to=unpacked, max_bytes=self._max_bytes)
        name = bundle.digest.removeprefix("sha256:")
        final = self._folder / _UNPACKED / name
        # What lies under that name may have been altered since: it is replaced, not believed.
        old = temporary / "old"
        try:
            if final.exists():
                final.rename(old)
            unpacked.rename(final)
        except OSError as reason:
            raise BundleError(
                "the bundle cannot be unpacked",
                location=Location(str(final)),
                found=reason.strerror,
            ) from None
        return replace(bundle, folder=final)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A folder on the same file system, gone at the end."""
        path = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


class OnlyBundles:
    """A file that takes a bundle and nothing else: what a wrong address sends must not fill the disk first."""

    _BEGIN = MANIFEST.encode() + b"\0"

    def __init__(self, out: BinaryIO, where: str) -> None:
        self._out = out
        self._where = where
        self._head = b""

    def write(self, data: bytes) -> int:
        missing = len(self._BEGIN) - len(self._head)
        if missing > 0:
            self._head += data[:missing]
            if not self._BEGIN.startswith(self._head):
                raise BundleError(
                    "not a bundle",
                    location=Location(self._where),
                    expected=f"a tar that begins with {MANIFEST}",
                )
        return self._out.write(data)
