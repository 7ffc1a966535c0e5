"""The threads that follow a source and the switch: hints from the file system, requests from signals, regular looks.

There are two, because a build may take its time, and whoever switches off must not wait for it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import cast

from scope_runtime.errors import ScopeError
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.types import Cause
from scope_runtime.lifecycle.watch import Watch
from scope_runtime.signals import OFF, RELOAD

_MOST_DEBOUNCES = 10


class Follower:
    """Follows a lifecycle's source and its switch until it is closed.

    Attributes:
        n_looks: how often the files were looked at.
    """

    def __init__(self, lifecycle: Lifecycle, *, events: bool = True) -> None:
        self._lifecycle = lifecycle
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._reloads: deque[Callable[[], object]] = deque()
        self._asked: SimpleQueue[Callable[[], object] | int] = SimpleQueue()
        self._troubles: dict[str, ScopeError | None] = {"switch": None, "files": None}
        self.n_looks = 0
        self._watch = Watch(self._hint) if events else None
        self._threads = [
            threading.Thread(target=self._run, name="scope-follow", daemon=True),
            threading.Thread(target=self._run_switch, name="scope-switch", daemon=True),
        ]

    def start(self) -> None:
        self._follow_folders()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        self._hint()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        if self._watch is not None:
            self._watch.close()

    @property
    def trouble(self) -> ScopeError | None:
        """The error of the latest look that failed for another reason than the policies; None if it went well."""
        return self._troubles["switch"] or self._troubles["files"]

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

    # -- asked for by a signal: what a handler does must be short, so the threads do it

    @property
    def on_signal(self) -> Callable[[int, FrameType | None], None]:
        """The handler of SIGHUP (reload), SIGUSR1 (off) and SIGUSR2 (on).

        It is no Python code: a handler that is would be called in the middle of itself, deeper with each signal of a
        burst, and would wait for ever for a lock that it holds already.
        """
        return cast(Callable[[int, FrameType | None], None], self._asked.put)

    def _ask_by(self, number: int) -> None:
        cause = Cause("signal", signal.Signals(number).name)
        if number == RELOAD:
            self.ask_reload(cause)
        elif number == OFF:
            self._lifecycle.off(cause)
        else:
            self._lifecycle.on(cause)

    def ask_reload(self, cause: Cause, then: Callable[[], object] = lambda: None) -> None:
        """``then`` is called on the thread when the reload is over, whatever came of it."""

        def reload() -> None:
            try:
                self._lifecycle.reload(cause)
            finally:
                then()

        def hand_over() -> None:
            self._reloads.append(reload)
            self._wake.set()

        self._asked.put(hand_over)

    def ask_off(self, cause: Cause) -> None:
        self._asked.put(lambda: self._lifecycle.off(cause))

    def ask_on(self, cause: Cause) -> None:
        self._asked.put(lambda: self._lifecycle.on(cause))

    def _hint(self) -> None:
        self._wake.set()
        self._asked.put(lambda: None)

    # -- the switch's thread

    def _run_switch(self) -> None:
        while not self._closing.is_set():
            asked: list[Callable[[], object] | int] = []
            with contextlib.suppress(Empty):
                asked.append(self._asked.get(timeout=self._lifecycle.options.poll_s))
                while True:
                    asked.append(self._asked.get_nowait())
            self._try("switch", partial(self._do, asked))

    def _do(self, asked: Iterable[Callable[[], object] | int]) -> None:
        for action in asked:
            try:
                if isinstance(action, int):
                    self._ask_by(action)
                else:
                    action()
            except ScopeError:
                pass  # on record, and what `status` says
            except Exception:
                told_by_the_thread()  # what was asked behind it may be "off"
        self._lifecycle.follow_switch()

    # -- the files' thread

    def _run(self) -> None:
        while not self._closing.is_set():
            # What was asked while files were resting has no wake-up of its own any more.
            hinted = bool(self._reloads) or self._wake.wait(self._lifecycle.options.poll_s)
            self._wake.clear()
            self._try("files", partial(self._look, hinted))
            self.n_looks += 1

    def _try(self, what: str, look: Callable[[], object]) -> None:
        try:
            look()
            self._troubles[what] = None
        except ScopeError as error:
            self._troubles[what] = error
        except Exception:
            # A fault of ours must be seen, and must not end the following.
            told_by_the_thread()

    def _look(self, hinted: bool) -> None:
        while self._reloads:
            with contextlib.suppress(ScopeError):  # on record, and what `status` says
                self._reloads.popleft()()
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
            if self._closing.is_set() or self._reloads:
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
