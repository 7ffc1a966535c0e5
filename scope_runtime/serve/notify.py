"""What a supervisor of systemd's kind is told: ready, reloading, ending (sd_notify(3), systemd.service(5))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping

SOCKET = "NOTIFY_SOCKET"
_SEND_S = 1.0


class Supervisor:
    """Told over the datagram socket that ``NOTIFY_SOCKET`` names; where there is none, nobody is told.

    Methods may be called from any thread. A supervisor that cannot be reached changes nothing about serving.

    Args:
        address: a path, or ``@name`` for a socket without one; None or anything else: nobody.
        clock_us: CLOCK_MONOTONIC in microseconds.
    """

    def __init__(self, address: str | None, clock_us: Callable[[], int] | None = None) -> None:
        known = address is not None and len(address) > 1 and address[0] in "/@"
        self._address = address if known else None
        self._clock_us = clock_us or _monotonic_us

    @classmethod
    def of(cls, environment: MutableMapping[str, str] = os.environ) -> Supervisor:
        """The one of this process. Its children do not inherit it: what they say is not our state."""
        return cls(environment.pop(SOCKET, None))

    def ready(self, status: str) -> None:
        """The first request can be answered, or a reload is over."""
        self._tell("READY=1", status=status)

    def reloading(self) -> None:
        """A reload begins; ``ready`` follows, whatever comes of it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={self._clock_us()}", status="reloading")

    def stopping(self, status: str) -> None:
        """No new requests are taken."""
        self._tell("STOPPING=1", status=status)

    def _tell(self, *fields: str, status: str) -> None:
        if self._address is None:
            return
        # A line break would begin a field of its own.
        text = "\n".join((*fields, f"STATUS={' '.join(status.split())}"))
        address = self._address
        if address[0] == "@":
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.settimeout(_SEND_S)
                to.sendto(text.encode(), address)
        except OSError:
            return


def _monotonic_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
