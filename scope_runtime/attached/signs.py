"""Whether a server still works: what its hook counts, what its process uses up, and whether it answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.errors import HookError

if TYPE_CHECKING:
    from scope_runtime.attached.server import Attached

HANGS_S = 60.0
"""Without any sign of life for so long a server hangs."""

_WORKS_S = 0.25
"""Of a processor, since the last sign: more than it takes to be asked now and then, less than any work does."""

_GAP_S = 1.0
"""What one look can add to the silence: we may have been stopped ourselves, and the server with us."""

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """What a process has used up: seconds of processors, and pages that came off a disk."""

    cpu_s: float
    n_read: int


def used(pid: int) -> Used:
    """Of a process; nothing where there is none. See proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Used(0.0, 0)
    told = stat.rpartition(")")[2].split()
    return Used((int(told[11]) + int(told[12])) * _TICK_S, int(told[9]))


class SignsOfLife:
    """Looks at a server again and again.

    A long batch on a slow machine is no hang: it uses a processor, or waits for weights to come off a disk. A server
    that computes elsewhere or has nothing to do answers. One that hangs does none of these.

    Args:
        limit_s: see ``HANGS_S``.
        n_ubatches: that its hook has counted.
        used: what its process has used up.
        answers: whether it answers within so many seconds, out of the loop that computes.
        clock: seconds.
    """

    def __init__(
        self,
        limit_s: float,
        n_ubatches: Callable[[], int],
        used: Callable[[], Used],
        answers: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._n_ubatches = n_ubatches
        self._used = used
        self._answers = answers
        self._clock = clock
        self._looked_s = clock()
        self._before = n_ubatches(), used()
        self._silent_s = 0.0
        self._ask_s = limit_s / 4

    @classmethod
    def of_start(cls, server: Attached, limit_s: float) -> SignsOfLife:
        """Of a server that loads its model: whatever it answers."""
        return cls(limit_s, lambda: 0, lambda: used(server.process.pid), server.upstream.speaks)

    @classmethod
    def of(cls, server: Attached, limit_s: float) -> SignsOfLife:
        """Of a server that is proved."""

        def n_ubatches() -> int:
            try:
                return server.hook.status.n_ubatches
            except HookError:
                return 0  # it has ended, which is told otherwise

        pid = server.process.pid
        return cls(limit_s, n_ubatches, lambda: used(pid), server.upstream.answers)

    def hangs(self) -> bool:
        """Whether it has shown no sign for too long. Blocks for a quarter of the limit at most, to be answered."""
        self._add(_GAP_S)
        now = self._n_ubatches(), self._used()
        if self._worked(now):
            self._alive(now)
        elif self._silent_s >= self._ask_s:
            asked_s = self._limit_s / 4
            if self._answers(asked_s):
                self._alive(now)
            else:
                self._add(asked_s)
                self._ask_s = self._silent_s + self._limit_s / 8
        return self._silent_s >= self._limit_s

    def _add(self, most_s: float) -> None:
        now_s = self._clock()
        self._silent_s += min(now_s - self._looked_s, most_s)
        self._looked_s = now_s

    def _worked(self, now: tuple[int, Used]) -> bool:
        (n_ubatches, before), (n_now, used_now) = self._before, now
        return (
            n_now != n_ubatches
            or used_now.n_read != before.n_read
            or used_now.cpu_s - before.cpu_s >= _WORKS_S
        )

    def _alive(self, now: tuple[int, Used]) -> None:
        self._before, self._silent_s, self._ask_s = now, 0.0, self._limit_s / 4
