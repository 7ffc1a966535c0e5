"""One line on stderr while a model loads, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WIDTH = 24


@contextmanager
def loading(what: str, *, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Gives a function that takes the share that is done; 1.0, or leaving, wipes the line."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return

    def show(done: float) -> None:
        if done >= 1.0:
            sys.stderr.write("\r\033[K")
        else:
            filled = int(done * WIDTH)
            bar = "█" * filled + "░" * (WIDTH - filled)
            sys.stderr.write(f"\r{what} {bar} {done:4.0%}\033[K")
        sys.stderr.flush()

    try:
        yield show
    finally:
        show(1.0)
