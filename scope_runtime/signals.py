"""The signals of a process that runs under policies, and what becomes of those that come while it loads."""

from __future__ import annotations

import signal

RELOAD, OFF, ON = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
SIGNALS = (RELOAD, OFF, ON)


def hold_signals() -> None:
    """Has them wait until ``take_signals``: without a handler they would end the process.

    For the main thread, before anything is imported that starts others (numpy does): they hold what it holds.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def take_signals() -> None:
    """Lets them come, those that waited too (each once), now that somebody handles them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
