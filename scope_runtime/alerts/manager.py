"""The alert manager as a sink: events go in from any thread, one thread keeps the time, one a receiver delivers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from scope_runtime.alerts.book import AlertBook, Post, ReceiverCounts, Record, post_once
from scope_runtime.alerts.options import AlertOptions
from scope_runtime.clocks import SteadyClock
from scope_runtime.events import Event

_LONGEST_WAIT_S = 30.0
"""The wall clock may be put forward while a thread waits."""
_AFTER_FAULT_S = 1.0


class AlertManager:
    """Follows the alerts of all requests and tells receivers; see docs/alerts.md.

    ``write`` never waits for a receiver or a file.

    Args:
        clock: seconds since the epoch that never go back; a steady clock by default, so that one that is put back
            delays nobody's notification.
        close_wait_s: how long ``close`` waits for a delivery that is under way; what was not delivered is kept, and
            delivered after the next start.

    Raises:
        AlertError: the state cannot be kept, or a receiver's address or secret is not there.
    """

    def __init__(
        self,
        options: AlertOptions,
        *,
        clock: Callable[[], float] | None = None,
        chance: Callable[[], float] = random.random,
        post: Post = post_once,
        close_wait_s: float = 5.0,
    ) -> None:
        self._clock = clock or SteadyClock()
        self.book = AlertBook(options, clock=self._clock, chance=chance, post=post)
        self._close_wait_s = close_wait_s
        self._closing = False
        self._threads: dict[str | None, threading.Thread] = {}
        self._start()

    def _start(self) -> None:
        """A thread for the time, and one for each receiver that has none."""
        for name in (None, *(receiver.name for receiver in self.book.options.receivers)):
            if name not in self._threads or not self._threads[name].is_alive():
                thread = threading.Thread(
                    target=self._run,
                    args=(name,),
                    name=f"scope-alerts-{name or 'time'}",
                    daemon=True,
                )
                self._threads[name] = thread
                thread.start()

    def _run(self, name: str | None) -> None:
        while self._wait(name):
            try:
                if name is None:
                    self.book.turn()
                else:
                    self.book.attempt(name)
            except Exception as error:
                # A fault of ours must be seen, and must not end the telling.
                threading.excepthook(
                    threading.ExceptHookArgs(
                        (type(error), error, error.__traceback__, threading.current_thread())
                    )
                )
                with self.book.changed:
                    self.book.changed.wait(_AFTER_FAULT_S)

    def _wait(self, name: str | None) -> bool:
        """Until there is something to do; False: nothing any more."""
        with self.book.changed:
            while not self._closing:
                if name is not None and name not in self.book.receivers:
                    return False
                due = self.book.turn_due() if name is None else self.book.attempt_due(name)
                left_s = _LONGEST_WAIT_S if due is None else due - self._clock()
                if left_s <= 0:
                    return True
                self.book.changed.wait(min(left_s, _LONGEST_WAIT_S))
            return False

    # -- a sink

    def bind(self, record: Record) -> None:
        """Puts what came of notifications on record there: ``Runtime.write``."""
        self.book.bind(record)

    def catch_up(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Takes out of an audit log what an earlier process saw and did not live to keep."""
        self.book.catch_up(records)

    def write(self, events: Sequence[Event]) -> None:
        """Takes events in order. Never raises, never waits for I/O."""
        self.book.observe(events)

    def close(self) -> None:
        """Ends the telling and keeps what there is. Safe to call twice."""
        with self.book.changed:
            if self._closing:
                return
            self._closing = True
            self.book.changed.notify_all()
        until = time.monotonic() + self._close_wait_s
        for thread in self._threads.values():
            thread.join(max(until - time.monotonic(), 0.0))
        self.book.close()

    # -- what others see

    def configure(self, options: AlertOptions) -> None:
        """Takes up other receivers, intervals and limits. Raises AlertError; then nothing has changed."""
        self.book.configure(options)
        self._start()

    def status(self) -> dict[str, Any]:
        """What fires now, since when, and what is not delivered yet."""
        return self.book.status()

    def counts(self) -> dict[str, ReceiverCounts]:
        """What became of notifications, by receiver: for metrics."""
        return self.book.counts()

    def states(self) -> dict[str, int]:
        """How many alerts are pending and how many firing."""
        return self.book.states()
