"""The last events, in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from scope_runtime.events import Event


class MemoryLog:
    """Keeps the last events in memory, for ``Runtime.events()``."""

    def __init__(self, keep: int = 10_000) -> None:
        self.kept: deque[Event] = deque(maxlen=keep)

    def write(self, events: Sequence[Event]) -> None:
        self.kept.extend(events)

    def close(self) -> None:
        """Nothing to close; what was kept stays readable."""
