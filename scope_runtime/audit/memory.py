"""The last events, in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from scope_runtime.events import Event


class MemoryLog:
    """Keeps the last events in memory, for ``Runtime.events()``."""

    def __init__(self, keep: int = 10_000) -> None:
        self.kept: deque[Event] = deque(maxlen=keep)

    def write(self, events: Sequence[Event]) -> None:
        # What a policy lets the audit log keep of prompts is not for whoever looks at the last events.
        self.kept.extend(replace(each, contents=()) if each.contents else each for each in events)

    def close(self) -> None:
        """Nothing to close; what was kept stays readable."""
