"""Policies that come as bundles: fetched, trusted, unpacked; and the thread that asks for them."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from scope_runtime.bundle.archive import Bundle, read_archive
from scope_runtime.bundle.keys import read_public_key
from scope_runtime.bundle.places import is_server, shown
from scope_runtime.bundle.source import BundleSource
from scope_runtime.errors import BundleError, Location, ScopeError, UsageError
from scope_runtime.files import open_regular, sha256_of
from scope_runtime.lifecycle.follow import told_by_the_thread
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.types import BundleOptions, FeedStatus

_LEAST_S = 1.0
"""Between two answers of a server that says each time that there is something new."""


class BundleFeed:
    """The bundles of one place; a Feed.

    Args:
        folder: of our own; what is fetched goes there once it is trusted.

    Raises:
        ScopeError: a key cannot be read, or the place is none.
    """

    def __init__(self, options: BundleOptions, folder: Path) -> None:
        if options.wait_s and not is_server(options.where):
            raise UsageError(
                "only a server can hold its answer back", found=options.where, expected="https://…"
            )
        self._options = options
        self._keys = [read_public_key(path) for path in options.keys]
        self._source = BundleSource(
            options.where,
            folder,
            self._keys,
            token=os.environ.get(options.token_env),
            ca=options.ca,
        )
        self.folder = folder
        self._asking = (
            threading.Lock()
        )  # for as long as the place takes to answer: nobody else may need it
        self._latest: Bundle | None = None
        self._good_s = time.monotonic()  # a clock that is set neither makes stale nor hides it
        self._waited_s = 0.0
        how = f"asked every {options.poll_s:g} s"
        if options.wait_s:
            how = f"held back for up to {options.wait_s:g} s, {how}"
        self._status = FeedStatus(
            shown(options.where), how, None, None, False, 0.0, None, False, 0, 0
        )

    # -- a Feed

    def ask(self) -> None:
        """Fetches what is new. Raises BundleError; what was fetched before stays."""
        with self._asking:
            status = self._status
            try:
                bundle = self._fetched()
            except ScopeError as error:
                self._status = replace(status, error=error, failed=status.failed + 1)
                raise
            if bundle is not None:
                self._latest = bundle
            latest = self._latest
            self._good_s = time.monotonic()
            self._status = replace(
                status,
                digest=latest.digest if latest else None,
                signed_by=latest.signed_by if latest else None,
                verified=latest.verified if latest else False,
                last_good=time.time(),
                error=None,
                ok=status.ok + 1,
            )

    def _fetched(self) -> Bundle | None:
        try:
            return self._source.fetch()
        except OSError as reason:
            raise BundleError(
                "the bundle cannot be written",
                location=Location(str(self.folder)),
                found=reason.strerror or str(reason),
            ) from None

    def wait(self, closing: threading.Event) -> None:
        """Returns when the server says so, or when it is time to ask again."""
        began = time.monotonic()
        # A server that does not hold answers back is asked no more often than any other place.
        again_s = began + self._options.poll_s
        if self._options.wait_s:
            try:
                if self._source.wait(self._options.wait_s):
                    again_s = self._waited_s + min(_LEAST_S, self._options.poll_s)
            except ScopeError:
                pass  # the next fetch says the same, and is on record
        closing.wait(max(again_s - time.monotonic(), 0.0))
        self._waited_s = time.monotonic()

    @property
    def latest(self) -> str | None:
        return self._status.digest

    def digests(self) -> tuple[str, ...]:
        latest = self._latest
        return tuple(f"sha256:{entry.sha256}" for entry in latest.manifest.files) if latest else ()

    def source(self) -> Source:
        """The latest bundle, checked again from its first byte: what lies unpacked is not believed."""
        latest = self._latest
        if latest is None:
            raise self._status.error or BundleError(
                "there is no bundle", location=Location(self._status.where)
            )
        unpacked = self._source.again(latest)
        if unpacked.folder is None:
            raise RuntimeError("a bundle without a folder")
        return Source(unpacked.folder, unpacked.folder)

    def archive(self) -> Path | None:
        return self._latest.path if self._latest else None

    def vouch(self, archive: Path, source: Source) -> None:
        """Behaviour of a restart and of a rollback: the signature is checked again, with the keys of now.

        Raises:
            BundleError: the archive is damaged or not trusted, or the files are not those of it.
        """
        if not archive.exists() and not self._keys:
            return  # kept before there were bundles; its digests were checked
        signed = {
            entry.path: entry.sha256 for entry in read_archive(archive, self._keys).manifest.files
        }
        root = source.root or source.path
        for path in sorted(path for path in root.rglob("*") if not path.is_dir()):
            with open_regular(path, BundleError) as file:
                found = sha256_of(file)
            if signed.get(path.relative_to(root).as_posix()) != found:
                raise BundleError("a kept file is not of its bundle", location=Location(str(path)))

    def forget_others(self) -> None:
        if self._latest is not None:
            self._source.forget_others(self._latest)

    def status(self) -> FeedStatus:
        status, limit = self._status, self._options.stale_after_s
        return replace(status, stale=limit is not None and time.monotonic() - self._good_s > limit)


class FeedFollower:
    """The thread that asks a lifecycle's feed until it is closed."""

    def __init__(self, lifecycle: Lifecycle, feed: BundleFeed) -> None:
        self._lifecycle = lifecycle
        self._feed = feed
        self._closing = threading.Event()
        self._acting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="scope-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the thread is done, or asks or waits for a server, whose answer it will not use."""
        self._closing.set()
        with self._acting:
            pass

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._feed.wait(self._closing)
                asked = self._lifecycle.ask()
                with self._acting:
                    if asked and not self._closing.is_set():
                        self._lifecycle.follow_asked()
            except Exception:
                # A fault of ours must be seen, and must not end the following.
                told_by_the_thread()
