"""The thread that follows a source: hints from the file system, requests from signals, and a look every few seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from scope_runtime.errors import ScopeError
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.types import Cause
from scope_runtime.lifecycle.watch import Watch

_MOST_DEBOUNCES = 10


class Follower:
    """Follows a lifecycle's source until it is closed.

    Attributes:
        n_looks: how often the files were looked at.
        trouble: the error of the latest look that failed for another reason than the policies; None if it went well.
    """

    def __init__(self, lifecycle: Lifecycle, *, events: bool = True) -> None:
        self._lifecycle = lifecycle
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._asked: deque[Callable[[], object]] = deque()
        self.n_looks = 0
        self.trouble: ScopeError | None = None
        self._watch = Watch(self._wake.set) if events else None
        self._thread = threading.Thread(target=self._run, name="scope-follow", daemon=True)

    def start(self) -> None:
        self._follow_folders()
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._watch is not None:
            self._watch.close()

    @property
    def hints(self) -> str:
        """How changes are noticed, in words."""
        if self._lifecycle.feed is not None:
            return self._lifecycle.feed.status().how
        poll = f"digests every {self._lifecycle.options.poll_s:g} s"
        if self._watch is None:
            return f"{poll} alone"
        trouble = self._watch.trouble
        return f"{poll} alone ({trouble})" if trouble else f"file system events, {poll}"

    # -- asked for by a signal: what a handler does must be short, so the thread does it

    def ask_reload(self, cause: Cause, then: Callable[[], object] = lambda: None) -> None:
        """``then`` is called on the thread when the reload is over, whatever came of it."""

        def reload() -> None:
            try:
                self._lifecycle.reload(cause)
            finally:
                then()

        self._ask(reload)

    def ask_off(self, cause: Cause) -> None:
        self._ask(lambda: self._lifecycle.off(cause))

    def ask_on(self, cause: Cause) -> None:
        self._ask(lambda: self._lifecycle.on(cause))

    def _ask(self, action: Callable[[], object]) -> None:
        self._asked.append(action)
        self._wake.set()

    # -- the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            # What was asked while files were resting has no wake-up of its own any more.
            hinted = bool(self._asked) or self._wake.wait(self._lifecycle.options.poll_s)
            self._wake.clear()
            try:
                self._look(hinted)
                self.trouble = None
            except ScopeError as error:
                self.trouble = error
            except Exception:
                # A fault of ours must be seen, and must not end the following.
                told_by_the_thread()
            self.n_looks += 1

    def _look(self, hinted: bool) -> None:
        while self._asked:
            with contextlib.suppress(ScopeError):  # on record, and what `status` says
                self._asked.popleft()()
        self._lifecycle.follow_switch()
        if hinted:
            self._settle()
        if self._closing.is_set():
            return
        if self._lifecycle.feed is None:  # a feed has a thread of its own
            self._lifecycle.follow()
        self._follow_folders()

    def _settle(self) -> None:
        """Waits until the files rest, but not for ever."""
        rest_s = self._lifecycle.options.debounce_ms / 1e3
        deadline = time.monotonic() + _MOST_DEBOUNCES * rest_s
        while self._wake.wait(rest_s) and time.monotonic() < deadline:
            if self._closing.is_set() or self._asked:
                return
            self._wake.clear()

    def _follow_folders(self) -> None:
        if self._watch is not None:
            lifecycle = self._lifecycle
            state = (lifecycle.state.folder,) if lifecycle.state else ()
            files = () if lifecycle.feed else lifecycle.source.folders(lifecycle.named)
            self._watch.follow((*files, *state))


def told_by_the_thread() -> None:
    """Says the exception that was just caught as a thread that ends of it would, and goes on."""
    threading.excepthook(threading.ExceptHookArgs((*_caught(), threading.current_thread())))


def _caught() -> tuple[type[BaseException], BaseException | None, TracebackType | None]:
    kind, error, traceback = sys.exc_info()
    return kind or BaseException, error, traceback
