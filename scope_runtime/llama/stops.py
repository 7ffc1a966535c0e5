"""Stop texts in a stream: nothing of one is ever let out, and nothing else is held back longer than it must be."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Looks for the first of some texts in pieces that arrive one by one.

    Attributes:
        found: whether one was met; what comes after it is not looked at.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Takes the next piece, and returns what is certainly no part of a stop text."""
        if self.found:
            return ""
        self._held += text
        # The one that is complete first, however the text was cut; of those the one that began first.
        ends = [
            (place + len(stop), place)
            for stop in self._stops
            if (place := self._held.find(stop)) >= 0
        ]
        if ends:
            self.found = True
            out, self._held = self._held[: min(ends)[1]], ""
            return out
        keep = self._suffix()
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        out, self._held = self._held, ""
        return out

    def _suffix(self) -> int:
        """Length of the longest end of what is held that a stop text begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0
