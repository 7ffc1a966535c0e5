"""Keeps one llama-server running: started or adopted, watched, started again, ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.interface import Steering
from scope_runtime.attached.server import Attached, ServerFolder
from scope_runtime.attached.signs import HANGS_S, SignsOfLife
from scope_runtime.errors import ScopeError
from scope_runtime.types import ModelShape

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the server is started again, from the first failure in a row to all after the last."""

STEADY_S = 60.0
"""A server that lived for so long had no failure in a row."""

_LOOK_S = 0.2


class Keeper(Protocol):
    """What is told of the server; from one thread, or while nobody watches."""

    def came(self, server: Attached) -> None:
        """It is there and proved. What this raises ends it."""

    def gone(self, server: Attached, how: str) -> None:
        """It has ended."""

    def failed(self, error: Exception) -> None:
        """It does not start."""


class Supervisor:
    """The life of a server.

    Args:
        folder: where it lives; see ``attached.server``.
        say: told the server's log, and what becomes of the server, a line each.
        backoff_s: see ``BACKOFF_S``.
        hangs_s: a server without any sign of life for so long is ended, and started again.
        steering: what makes the hook of each server; by default it is preloaded.

    Raises:
        UsageError: the folder is another gateway's.
    """

    def __init__(
        self,
        command: ServerCommand,
        shape: ModelShape,
        folder: Path,
        say: Callable[[str], None],
        backoff_s: tuple[float, ...] = BACKOFF_S,
        hangs_s: float = HANGS_S,
        steering: Steering | None = None,
    ) -> None:
        self._shape = shape
        self._say = say
        self._backoff_s = backoff_s
        self._hangs_s = hangs_s
        self._closing = threading.Event()
        self._again = threading.Event()  # somebody wants it to be started again
        self._server: Attached | None = None
        self._signs: SignsOfLife | None = None  # of the server
        self._thread: threading.Thread | None = None
        self._folder = ServerFolder(
            folder, command, lambda line: say(f"llama-server: {line}"), hangs_s, steering
        )

    def begin(self, keeper: Keeper) -> None:
        """Adopts the server that is there, or starts one, and watches it from then on.

        Raises:
            ScopeError: it cannot be started, or not be steered.
        """
        server, why = self._folder.adopt()
        if why is not None:
            self._say(f"the llama-server that was there is ended: {why}")
        self._take(server or self._folder.start(self._shape), keeper)
        self._thread = threading.Thread(
            target=self._watch, args=(keeper,), name="scope-supervise", daemon=True
        )
        self._thread.start()

    def _take(self, server: Attached, keeper: Keeper) -> None:
        try:
            keeper.came(server)
        except BaseException:
            self._folder.end(server)
            raise
        self._server, self._signs = server, SignsOfLife.of(server, self._hangs_s)

    def _watch(self, keeper: Keeper) -> None:
        """Starts the server again whenever it has ended, or hangs."""
        failures = 0
        began = time.monotonic()
        while not self._closing.is_set():
            server, signs = self._server, self._signs
            if server is not None and signs is not None:
                how = self._ended(server, signs)
                if how is None:
                    continue
                self._server = None
                asked = self._again.is_set()
                keeper.gone(server, "it is started again, as was asked" if asked else how)
                if time.monotonic() - began > STEADY_S:
                    failures = 0
            if self._again.is_set():
                self._again.clear()
                failures = 0
                if self._closing.is_set():
                    return
            elif self._closing.wait(self._backoff_s[min(failures, len(self._backoff_s) - 1)]):
                return
            failures += 1
            began = time.monotonic()
            try:
                self._take(self._folder.start(self._shape), keeper)
            except Exception as error:
                keeper.failed(error)

    def _ended(self, server: Attached, signs: SignsOfLife) -> str | None:
        """How the server has ended, by itself or because it hangs; None: it goes on."""
        if server.process.ended(_LOOK_S):
            return server.process.how
        if not signs.hangs() or self._closing.is_set():
            return None
        # Not asked to first: what hangs does not listen, and requests wait for it.
        server.process.kill()
        return f"no sign of life for {self._hangs_s:g} s; {server.process.how}"

    def restart(self, server: Attached) -> None:
        """Ends the server at once, and has it started again without a pause."""
        self._again.set()
        server.process.kill()

    def end_server(self) -> None:
        """Ends the server at once; for what waits for it and must not any more. None is started again."""
        self._closing.set()
        server = self._server
        if server is not None:
            server.process.end()

    def kill(self) -> None:
        """Ends the server where this process is left as it stands, without ``close``."""
        self._closing.set()
        self._folder.kill()

    def close(self) -> None:
        """Ends the server, and what would start it again. Safe to call twice."""
        self._closing.set()
        self._folder.close_starts()
        if self._thread is not None:
            self._thread.join()
        server, self._server = self._server, None
        if server is not None:
            self._folder.end(server)
        self._folder.close()


def reasons(error: Exception) -> dict[str, Any]:
    """An error as it is put on record."""
    return dict(error.fields()) if isinstance(error, ScopeError) else {"error": str(error)}
