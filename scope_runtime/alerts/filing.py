"""Keeps the state file and the dead letters, so that whatever comes between two writes, no notification is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scope_runtime.alerts.files import (
    Kept,
    append_letters,
    only_here,
    put_aside,
    read_state,
    save_state,
)
from scope_runtime.alerts.options import AlertError
from scope_runtime.alerts.outbox import Notification
from scope_runtime.events import Event, Kind

AGAIN_S = 15.0
"""How long after a failure files are written again."""

Letter = tuple[Notification, str]
"""A notification, and why it was given up."""


class Filing:
    """The files of one process' alerts.

    Attributes:
        due_at: when something that could not be written should be; None: all is.
        lost: the event that says that an earlier process' state could not be used.
        troubles: what cannot be written or read, for people.
    """

    def __init__(
        self, state: Path | None, dead_letter: Path | None, clock: Callable[[], float]
    ) -> None:
        self._state, self._dead_letter, self._clock = state, dead_letter, clock
        self._writing = threading.Lock()  # keeps writers in order; held during I/O
        self._adding = threading.Lock()  # never is
        self._letters: list[Letter] = []
        self._held = ExitStack()
        self.due_at: float | None = None
        self.lost: Event | None = None
        self.troubles: dict[str, str] = {}

    @property
    def keeps_state(self) -> bool:
        return self._state is not None

    def open(self) -> Kept:
        """What an earlier process left. What cannot be used is put aside, and ``lost`` says so.

        Raises:
            AlertError: the files cannot be kept here.
        """
        now = self._clock()
        if self._state is None:
            return Kept(now)
        self._held.enter_context(only_here(self._state))
        try:
            return read_state(self._state) or Kept(now)
        except AlertError as error:
            aside = put_aside(self._state, now)
            self.troubles["start"] = f"{error}. It is now {aside.name}, and alerts began anew"
            detail = {**error.fields(), "put_aside": str(aside)}
            self.lost = Event(kind=Kind.ALERT, what="state-lost", time=now, detail=detail)
            return Kept(now)

    def add(self, letters: Iterable[Letter]) -> None:
        """Takes dead letters, which ``write`` writes."""
        with self._adding:
            self._letters += letters
            if self._letters and self.due_at is None:
                self.due_at = self._clock()

    def write(self, kept: Callable[[], dict[str, Any]] | None) -> bool:
        """Writes the dead letters, then the state without them; whether all went well.

        Args:
            kept: what the state is now, but for ``waiting`` dead letters; None: it is as it was.
        """
        with self._writing:
            buried = self._bury()
            saved = kept is None or self._state is None or self._save(self._state, kept())
            with self._adding:
                well = buried and saved
                self.due_at = None if well and not self._letters else self._clock() + AGAIN_S
            return well

    def _bury(self) -> bool:
        with self._adding:
            letters = list(self._letters)
        if letters and self._dead_letter is not None:
            try:
                append_letters(self._dead_letter, letters, now=self._clock())
            except AlertError as error:
                self.troubles["dead letters"] = str(error)
                return False
        self.troubles.pop("dead letters", None)
        with self._adding:
            del self._letters[: len(letters)]
        return True

    def _save(self, path: Path, kept: dict[str, Any]) -> bool:
        with self._adding:
            unburied = [letter.data() for letter, _ in self._letters]
        try:
            save_state(path, {**kept, "waiting": [*unburied, *kept["waiting"]]})
        except AlertError as error:
            self.troubles["state"] = str(error)
            return False
        self.troubles.pop("state", None)
        return True

    def close(self) -> None:
        """Lets another process keep its alerts there; what is delivered from now on is not kept."""
        with self._writing:
            self._state = None
            self._held.close()
