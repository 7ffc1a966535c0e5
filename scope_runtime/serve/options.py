"""How the endpoint is served: what ``spec.serve`` of a ``scope.yaml`` says, and the command's options."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import UsageError
from scope_runtime.lifecycle.address import Address

UNIX = "unix:"
LISTEN = Address("127.0.0.1", 8080)


def admin_place(text: str, beside: Path | None = None) -> Address | Path:
    """``HOST:PORT``, ``:PORT`` for 127.0.0.1, or ``unix:PATH``, the path relative to ``beside``.

    Raises:
        UsageError: none of these.
    """
    if text.startswith(UNIX) and len(text) > len(UNIX):
        path = Path(text.removeprefix(UNIX))
        return path if beside is None else beside / path
    return Address.parse(text)


def is_loopback(address: Address) -> bool:
    """Whether nobody but processes of this machine can reach it."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How the endpoint is served.

    Attributes:
        listen: of the OpenAI routes.
        admin: of the control routes, for admin keys; or a Unix socket, for this user alone; None serves none.
        keys: file with API keys; None asks nobody for a key, which only a private listener may do.
        alias: the model's name in requests; its file's without it.
        label_header: header in which a request may bring labels; only the names in ``labels`` are taken.
        max_queue: requests that may wait, of all tenants; ``max_queue_tenant`` of one.
        deadline_s: longest that a request may take, waiting included.
        engine_hangs_s: without any sign of life for so long a llama-server is ended, and started again.
        drain_s: how long running answers may go on after SIGTERM.
        max_body_bytes: of a request.
        receive_s: longest that a request may take to arrive, and ``send_s`` that a client may leave the answer unread.
        max_connections: of clients at once.
        sae: ``PATH`` or ``PATH:LAYERS`` of whole SAE layers, for the console's Compare; None: it has none.
        unready_when_stale: ``/ready`` fails while the policies on disk are not those in force.
    """

    listen: Address = LISTEN
    admin: Address | Path | None = None
    keys: Path | None = None
    alias: str | None = None
    label_header: str = "x-scope-labels"
    labels: tuple[str, ...] = ()
    max_queue: int = 128
    max_queue_tenant: int = 32
    deadline_s: float = 600.0
    engine_hangs_s: float = 60.0
    drain_s: float = 30.0
    max_body_bytes: int = 8 * 2**20
    receive_s: float = 30.0
    send_s: float = 60.0
    max_connections: int = 1024
    sae: str | None = None
    unready_when_stale: bool = False

    def check(self) -> None:
        """Refuses to be reachable for strangers without keys.

        Raises:
            UsageError: it would be.
        """
        if self.keys is None and not is_loopback(self.listen):
            raise UsageError(
                "without keys, anybody who reaches this address could ask",
                found=str(self.listen),
                hint="Give --keys FILE (make keys with `scope api-key`), or listen at 127.0.0.1",
            )

    def check_admin(self, has_admin: bool) -> None:
        """Refuses an admin listener that nobody could use, or that users' keys would have to open.

        Raises:
            UsageError: it is a port, and no key is an admin's.
        """
        if isinstance(self.admin, Address) and not has_admin:
            raise UsageError(
                "the admin listener needs a key of its own",
                found="no key with admin: true",
                hint="Make one with `scope api-key NAME --admin`, or use unix:PATH",
            )
