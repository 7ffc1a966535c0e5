"""Hints that something changed near a source. Nothing here decides anything: digests do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

# Opening and reading are events too, and we do both. They are kept out where the system makes them: each event that
# it makes goes through four threads, and a token waits for each of them.
_CHANGES: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    FileClosedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
]


class _Hint(FileSystemEventHandler):
    def __init__(self, on_hint: Callable[[], None]) -> None:
        self._on_hint = on_hint
        self.lost: set[str] = set()  # what was deleted: a watch ends with its directory

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("deleted", "moved"):
            self.lost.add(str(event.src_path))
        self._on_hint()


class Watch:
    """Watches directories, not files: editors and mounts replace files, and a watch would go with them.

    Args:
        on_hint: called on a thread of its own, any number of times for one change.

    Attributes:
        trouble: why there are no hints, in words; None while there are.
    """

    def __init__(self, on_hint: Callable[[], None]) -> None:
        self._handler = _Hint(on_hint)
        self._watches: dict[Path, tuple[int, ObservedWatch]] = {}
        self.trouble: str | None = None
        self._observer: BaseObserver | None = Observer()
        try:
            self._observer.start()
        except (OSError, RuntimeError) as reason:  # no more inotify instances
            self._observer = None
            self.trouble = str(reason)

    def follow(self, folders: Iterable[Path]) -> None:
        """Watches exactly these directories; one that was made anew since is watched anew."""
        observer = self._observer
        if observer is None:
            return
        wanted = {folder: inode for folder in folders if (inode := _inode(folder)) is not None}
        lost, self._handler.lost = self._handler.lost, set()
        for folder, (inode, watch) in list(self._watches.items()):
            if wanted.get(folder) != inode or str(folder) in lost:
                del self._watches[folder]
                with contextlib.suppress(KeyError, OSError):
                    observer.unschedule(watch)
        for folder, inode in wanted.items():
            if folder in self._watches:
                continue
            try:
                watch = observer.schedule(
                    self._handler, str(folder), recursive=False, event_filter=_CHANGES
                )
            except OSError as reason:
                self.trouble = f"{folder}: {reason.strerror or reason}"
            else:
                self._watches[folder] = (inode, watch)
                self.trouble = None

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None
