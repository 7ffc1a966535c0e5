"""One line on stderr while something takes its time, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.pack import Report
    from scope_runtime.files import Progress

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


@contextmanager
def reporting(*, quiet: bool) -> Iterator[Report]:
    """What is being done, as one line on a terminal that each next step replaces."""
    with ExitStack() as steps:

        def report(what: str) -> Progress:
            steps.close()
            show = steps.enter_context(loading(what, quiet=quiet))
            show(0.0)

            def progress(done: int, total: int) -> None:
                show(done / max(total, 1))

            return progress

        yield report
