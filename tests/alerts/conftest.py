"""A clock that stands still until it is set, events as the hook's reader makes them, a receiver that is a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.alerts.book import AlertBook
from scope_runtime.alerts.options import AlertOptions, Receiver
from scope_runtime.alerts.send import Attempt, Verdict
from scope_runtime.events import Event, Kind

START = 1_800_000_000.0
OK = Attempt(Verdict.DELIVERED, 200, "200 OK")
BROKEN = Attempt(Verdict.RETRY, 500, "500 Internal Server Error")
GONE = Attempt(Verdict.REFUSED, 404, "404 Not Found")
ACTIONS = ("log", "webhook")


def firing(
    request: str | None = "r1",
    rule: str = "watch",
    *,
    policy: str = "tiny",
    severity: str = "warning",
    labels: Mapping[str, str] | None = None,
    actions: tuple[str, ...] = ACTIONS,
    what: str = "firing",
) -> Event:
    return Event(
        kind=Kind.ALERT,
        what=what,
        time=0.0,  # the alerts' own clock counts, not the event's
        request_id=request,
        labels=labels or {},
        rule=rule,
        mode="enforce",
        features=("refusal (layer 18, id 4211)",),
        detail={
            "policy": policy,
            "severity": severity,
            "actions": list(actions),
            "revision": "sha256:ab",
            "position": 7,
            "activation": {"max": 9.5},
        },
    )


def resting(request: str = "r1", rule: str = "watch", **keys: Any) -> Event:
    return firing(request, rule, what="resolved", **keys)


def ended(request: str = "r1") -> Event:
    return Event(kind=Kind.REQUEST, what="summary", time=0.0, request_id=request)


@dataclass
class Desk:
    """An alert book with one receiver, ``desk``, whose posts go into ``got``; ``answer`` says what comes back."""

    folder: Path
    now: float = START
    answer: Callable[[dict[str, Any]], Attempt] = lambda body: OK
    tried: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    records: list[Event] = field(default_factory=list)
    receivers: tuple[Receiver, ...] = (Receiver("desk", "http://127.0.0.1:9/"),)
    books: list[AlertBook] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "alerts.json"

    @property
    def dead(self) -> Path:
        return self.folder / "dead.jsonl"

    def open(self, **options: Any) -> AlertBook:
        given: dict[str, Any] = {
            "state": self.state,
            "dead_letter": self.dead,
            "group_wait_s": 0.0,
            "receivers": self.receivers,
        } | options
        book = AlertBook(
            AlertOptions(**given), clock=lambda: self.now, chance=lambda: 1.0, post=self._post
        )
        book.bind(self.records.extend)
        self.books.append(book)
        return book

    def _post(self, receiver: Receiver, body: dict[str, Any], id: str, now: float) -> Attempt:
        self.tried.append((now - START, body))
        attempt = self.answer(body)
        if attempt.verdict is Verdict.DELIVERED:
            self.got.append(body)
        return attempt

    def do(self, book: AlertBook) -> None:
        """What is due now."""
        book.turn()
        for name in sorted(book.receivers):
            while book.attempt(name):
                pass

    def run(self, book: AlertBook, until: float) -> None:
        """Lets time go on to ``until`` seconds after the start, stopping wherever something is due."""
        end = START + until
        self.do(book)
        while True:
            with book.changed:
                due = [book.turn_due(), *map(book.attempt_due, book.receivers)]
            at = min((at for at in due if at is not None), default=end)
            if at > end:
                break
            assert at > self.now or at == end, "due now, though all was done"
            self.now = max(at, self.now)
            self.do(book)
            if at == end:
                break
        self.now = end
        self.do(book)

    def said(self) -> list[tuple[str, list[str]]]:
        """Of each delivered body its status and its alerts' names."""
        return [
            (body["status"], [f"{a['labels']['alertname']}:{a['status']}" for a in body["alerts"]])
            for body in self.got
        ]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
