"""Connections that are not kept for ever: a client that does not read, and more clients than are taken."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from scope_runtime.lifecycle import listen
from scope_runtime.lifecycle.address import Address
from scope_runtime.lifecycle.listen import tcp_socket
from scope_runtime.serve.options import ServeOptions
from scope_runtime.serve.protocol import bounded


@contextmanager
def listening(app: ASGIApp, options: ServeOptions) -> Iterator[tuple[str, int]]:
    config = uvicorn.Config(app, http=bounded(options), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with tcp_socket(Address("127.0.0.1", 0)) as at:
        at.listen()
        place = at.getsockname()[:2]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield place
        finally:
            server.should_exit = True
            thread.join()


def test_a_client_that_does_not_read_is_left() -> None:
    ended = threading.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watch = asyncio.ensure_future(_gone(receive))
        while not watch.done():
            await send({"type": "http.response.body", "body": b"a" * 65536, "more_body": True})
        ended.set()

    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    options = ServeOptions(send_s=0.2)
    with listening(endless, options) as place, socket.create_connection(place) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(60)


def test_more_clients_than_are_taken_are_sent_away() -> None:
    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    options = ServeOptions(max_connections=1)
    asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening(hello, options) as place, socket.create_connection(place) as first:
        assert _answer_to(first, asked).startswith(b"HTTP/1.1 200")
        with socket.create_connection(place) as second:
            assert _answer_to(second, asked) == b""


def _answer_to(client: socket.socket, asked: bytes) -> bytes:
    try:
        client.sendall(asked)
        return client.recv(100)
    except ConnectionError:
        return b""


def test_an_idle_connection_outlives_what_clients_keep() -> None:
    """Whoever hangs up first must be the client: its next request would be lost otherwise."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody asks")

    config = listen.listening(app)
    kept_s = httpx.Limits().keepalive_expiry
    assert kept_s is not None
    assert config.timeout_keep_alive > 60 > kept_s
