"""Where a request's time went."""

from __future__ import annotations

import time
from collections.abc import Callable


class Timing:
    """A stopwatch for one request, made when it is asked for: waiting, prompt, answer.

    It runs from ``start`` to ``stop``; the first such stretch is the prompt's and gives the first answer token, each
    later one gives another token. What the reader of a stream does between two tokens is in none of them.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._asked = clock()
        self._begun: float | None = None
        self._since: float | None = None
        self._stretches = 0
        self._prompt_s = 0.0
        self._generation_s = 0.0

    def begin(self) -> None:
        """It is the request's turn."""
        self._begun = self._clock()

    def start(self) -> None:
        """Runs from here on; where it runs already, it goes on."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Ends a stretch, if there is one."""
        if self._since is None:
            return
        seconds = self._clock() - self._since
        if self._stretches == 0:
            self._prompt_s = seconds
        else:
            self._generation_s += seconds
        self._stretches += 1
        self._since = None

    def record(self) -> dict[str, float]:
        """Seconds: waiting for a turn, the prompt up to the first answer token, the rest of the answer, all in all."""
        begun = self._asked if self._begun is None else self._begun
        return {
            "queue_s": round(begun - self._asked, 6),
            "prompt_s": round(self._prompt_s, 6),
            "generation_s": round(self._generation_s, 6),
            "duration_s": round(self._clock() - self._asked, 6),
        }
