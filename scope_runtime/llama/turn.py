"""Requests take turns: one at a time on one context."""

from __future__ import annotations

import threading
from types import TracebackType

from scope_runtime.errors import UsageError


class Turn:
    """A lock that tells a thread which would wait for itself: it left a stream open and asks for another answer.

    Attributes:
        n_waiting: threads that wait for their turn now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._counting = threading.Lock()
        self.n_waiting = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread began the request whose turn it is."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        if self.is_mine:
            raise UsageError(
                "a stream that this thread began is still open",
                hint="Read it to its end, or close it, before the next request",
            )
        with self._counting:
            self.n_waiting += 1
        try:
            self._lock.acquire()
        finally:
            with self._counting:
                self.n_waiting -= 1
        self._owner = threading.get_ident()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner = None
        self._lock.release()
