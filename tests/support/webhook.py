"""A receiver of webhooks that remembers what it got and answers as it is told."""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Hook:
    """What it got, in order; ``status`` and ``answer_headers`` are what it answers from now on."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.new: queue.Queue[Got] = queue.Queue()
        self.status = 200
        self.answer_headers: dict[str, str] = {}
        self.answer = b"ok"
        self.url = ""

    def next(self) -> Got:
        """The next request; waits for it."""
        return self.new.get(timeout=WAIT_S)


@contextmanager
def webhook(context: ssl.SSLContext | None = None) -> Iterator[Hook]:
    """Serves on a free port of the loopback; over TLS with a context."""
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            got = Got(self.path, dict(self.headers.items()), json.loads(data))
            hook.got.append(got)
            self.send_response(hook.status)
            for name, value in hook.answer_headers.items():
                self.send_header(name, value)
            if "Content-Length" not in hook.answer_headers:
                self.send_header("Content-Length", str(len(hook.answer)))
            self.end_headers()
            with suppress(OSError):  # the sender has read enough
                self.wfile.write(hook.answer)
            hook.new.put(got)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that the sender broke off

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    hook.url = f"{scheme}://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
