"""Lines on stderr from many threads, none within another."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

_whole = threading.Lock()


def tell(text: str) -> None:
    """Prints a text and ends its line; nothing of ours comes in between, and that nobody reads ends nothing."""
    with _whole, suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
