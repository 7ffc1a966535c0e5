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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from scope_runtime.bundle.archive import DEFAULT_MAX_BYTES, Bundle, read_archive
from scope_runtime.bundle.places import ServerPlace, place
from scope_runtime.errors import BundleError, Location, ScopeError, UsageError
from scope_runtime.files import written_whole

_KEPT = "kept.bundle"
_UNPACKED = "unpacked"


class BundleSource:
    """One place to fetch from, and one folder of our own to keep what was good.

    Nothing of a bundle reaches ``folder`` before its signature and every byte were checked. Not for use by
    several threads or processes at once.

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
                found=where,
                expected="a public key, or https://",
            )
        self._where = where
        self._place = place(where, token=token, ca=ca)
        self._folder = folder
        self._keys = tuple(keys)
        self._max_bytes = max_bytes
        self._seen: str | None = None
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
                    out, self._seen, wait_s=wait_s, max_bytes=self._max_bytes
                )
            if version is None:
                return None
            try:
                bundle = self._unpacked(archive, temporary)
            except ScopeError as error:
                if error.location == Location(str(archive)):  # a name that means nothing to anybody
                    error.location = Location(self._where)
                raise
            waiting = self._waiting(bundle)
            archive.replace(waiting)
        self._seen = version
        return replace(bundle, path=waiting)

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
        with self._temporary() as temporary:
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
        """Drops what was unpacked of other bundles, and what was fetched of them; with ``fetched`` of this one too."""
        for other in (self._folder / _UNPACKED).iterdir():
            if bundle.folder is None or other.name != bundle.folder.name:
                shutil.rmtree(other, ignore_errors=True)
        for waiting in self._folder.glob("*.fetched"):
            if fetched or waiting != bundle.path:
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
