"""Time that only goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class SteadyClock:
    """Seconds since the epoch that never go back, for whoever waits for a time to come.

    A wall clock that is put forward is followed. One that is put back is not: from then on this one runs ahead of it,
    by as much as it was put back, until the process ends.

    Args:
        wall: seconds since the epoch.
        monotonic: seconds since any time.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._lock = threading.Lock()
        self._ahead = wall() - monotonic()

    def __call__(self) -> float:
        with self._lock:
            now = self._monotonic()
            self._ahead = max(self._ahead, self._wall() - now)
            return now + self._ahead
