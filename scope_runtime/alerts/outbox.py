"""What waits for one receiver: in order, the oldest first, tried again until it is delivered or too old.

Nothing here knows of threads, files or the network; the time is an argument, chance is passed in.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scope_runtime.alerts.options import AlertOptions
from scope_runtime.alerts.send import Attempt, Verdict


@dataclass(slots=True)
class Notification:
    """One body for one receiver.

    Attributes:
        made_at: when; it says what was so then, however late it arrives.
        next_at: when it may be tried next.
        error: what came of the last attempt, for people.
    """

    receiver: str
    body: dict[str, Any]
    made_at: float
    next_at: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    attempts: int = 0
    error: str | None = None

    def data(self) -> dict[str, Any]:
        """As plain data, for files."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Notification:
        """What ``data`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(data["body"], dict):
            raise TypeError("a notification without a body")
        error = data.get("error")
        return cls(
            receiver=str(data["receiver"]),
            body=data["body"],
            made_at=float(data["made_at"]),
            next_at=float(data["next_at"]),
            id=str(data["id"]),
            attempts=int(data["attempts"]),
            error=None if error is None else str(error),
        )


@dataclass(slots=True)
class Counts:
    """Of one receiver, since the start.

    Attributes:
        made: notifications that were queued.
        delivered, dead: how they ended.
        failed: attempts that came to nothing.
    """

    made: int = 0
    delivered: int = 0
    dead: int = 0
    failed: int = 0


@dataclass(slots=True)
class Outbox:
    """A receiver's queue. Only its head is ever tried: nothing overtakes, so that "resolved" never comes too early.

    Args:
        chance: draws from [0, 1), for the jitter.
    """

    options: AlertOptions
    chance: Callable[[], float]
    waiting: deque[Notification] = field(default_factory=deque)
    counts: Counts = field(default_factory=Counts)
    _busy: Notification | None = None
    _retired: bool = False

    def add(self, notification: Notification) -> Notification | None:
        """Queues one; returns what had to make room for it, if the queue was full."""
        self.counts.made += 1
        self.waiting.append(notification)
        if len(self.waiting) <= self.options.queue:
            return None
        # What is under way stays: it may be delivered already.
        oldest = self.waiting[1] if self.waiting[0] is self._busy else self.waiting[0]
        self.waiting.remove(oldest)
        oldest.error = oldest.error or "the queue was full"
        self.counts.dead += 1
        return oldest

    def take(self, now: float) -> Notification | None:
        """The next to be tried, if its time has come; ``settle`` it."""
        if self._busy is not None or not self.waiting or self.waiting[0].next_at > now:
            return None
        self._busy = self.waiting[0]
        return self._busy

    def next_due(self) -> float | None:
        """When ``take`` has something next; None: never, or something is under way."""
        return self.waiting[0].next_at if self.waiting and self._busy is None else None

    def settle(self, attempt: Attempt, now: float) -> bool:
        """Puts down what came of the attempt; whether the notification is a dead letter now."""
        tried, self._busy = self._busy, None
        if tried is None or not self.waiting or self.waiting[0] is not tried:
            raise RuntimeError("nothing is under way")
        tried.attempts += 1
        if attempt.verdict is Verdict.DELIVERED:
            self.counts.delivered += 1
            self.waiting.popleft()
            return False
        self.counts.failed += 1
        tried.error = attempt.words
        tried.next_at = now + max(self._pause_s(tried.attempts), attempt.retry_after_s or 0.0)
        too_old = tried.next_at > tried.made_at + self.options.max_age_s
        if attempt.verdict is Verdict.REFUSED or too_old or self._retired:
            self.counts.dead += 1
            self.waiting.popleft()
            return True
        return False

    def retire(self) -> list[Notification]:
        """Ends the queue; returns what waits. What is under way ends there: delivered, or a dead letter."""
        self._retired = True
        left = [each for each in self.waiting if each is not self._busy]
        self.waiting = deque([self._busy] if self._busy is not None else [])
        self.counts.dead += len(left)
        return left

    def _pause_s(self, attempts: int) -> float:
        """Doubles with each attempt; between half of it and all of it, so that many senders do not come at once."""
        most = min(
            self.options.retry_max_s, self.options.retry_min_s * 2.0 ** min(attempts - 1, 40)
        )
        return most * (0.5 + self.chance() / 2)
