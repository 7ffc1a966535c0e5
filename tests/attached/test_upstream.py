"""What the gateway does on the HTTP side of a llama-server, against one that does only what a test says."""

from __future__ import annotations

import asyncio
import json

from scope_runtime.attached.upstream import Upstream

SLOT = 2


class Slow:
    """Says when a request came, and begins with it only when it is told to.

    Attributes:
        came: a request is there, whole. asked: somebody wanted to know what the slots do. gone: its client hung up.
        begins: set by a test.
    """

    def __init__(self) -> None:
        self.came, self.asked, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.begins = False

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET /slots"):
            slots = [{"id": n, "is_processing": n == SLOT and self.begins} for n in range(4)]
            told = json.dumps(slots).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(told), told))
            self.asked.set()
        else:
            length = next(x for x in head.lower().split("\r\n") if x.startswith("content-length:"))
            await reader.readexactly(int(length.split(":")[1]))
            self.came.set()
            assert not await reader.read()
            self.gone.set()
        writer.close()


async def hung_up_early() -> None:
    slow = Slow()
    server = await asyncio.start_server(slow.talk, "127.0.0.1", 0)
    upstream = Upstream(server.sockets[0].getsockname()[1], "key")
    sent = upstream.send("/completion", {"prompt": "the sea"}, SLOT)
    await slow.came.wait()
    closing = asyncio.ensure_future(sent.close())
    for _ in range(3):
        slow.asked.clear()
        await slow.asked.wait()
    # The slot looks free, but is not: a request for it is there.
    assert not closing.done()
    assert not slow.gone.is_set()
    slow.begins = True
    await closing
    await slow.gone.wait()
    upstream.close()
    server.close()


def test_a_request_is_hung_up_on_when_the_server_has_begun_and_not_before() -> None:
    asyncio.run(asyncio.wait_for(hung_up_early(), 60))
