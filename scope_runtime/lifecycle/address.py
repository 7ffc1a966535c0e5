"""Where to listen for TCP connections."""

from __future__ import annotations

import re
from dataclasses import dataclass

from scope_runtime.errors import UsageError

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]*)):(?P<port>\d+)")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """``HOST:PORT``, ``[IPv6]:PORT``; without a host the loopback, never every interface.

        Raises:
            UsageError: it is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise UsageError(
                "not an address to listen at", found=text, expected="HOST:PORT, or :PORT"
            )
        return cls(found["six"] or found["host"] or LOOPBACK, int(found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
