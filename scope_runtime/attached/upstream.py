"""The HTTP side of one llama-server, for its gateway."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import httpx

from scope_runtime.errors import HookError, ScopeError, UsageError

N_PROBE_TOKENS = 8
_WAIT_S = 30.0  # for a server that computes a long batch to look at its messages
_PROBE_S = 300.0  # for eight tokens, with weights that come off a disk
_IDLE_LOOK_S = 0.01
# What llama-server's own computing fails with; whatever else it says with status 500 came of reading a request.
_FAULTS = (
    "Compute error",
    "Invalid input batch",
    "Context size",
    "got exception",
    "std::bad_alloc",
)
# An idle connection would keep one of the server's threads, of which it has hardly more than slots.
_NONE_IDLE = httpx.Limits(max_connections=None, max_keepalive_connections=0)


class EngineGone(ScopeError):
    """The server went away, or answers what is no answer: nobody knows what became of the request."""


class NotTaken(EngineGone):
    """The server failed before the first word of an answer, and is still there: on the request, or by itself."""


class Upstream:
    """One server at 127.0.0.1, opened by its key. Its blocking methods may be called from any thread."""

    def __init__(self, port: int, key: str) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._headers = {"authorization": f"Bearer {key}"}
        # No proxy of the environment: the key and every prompt are in these requests.
        self._client = httpx.Client(
            base_url=self._url,
            headers=self._headers,
            timeout=_WAIT_S,
            trust_env=False,
            limits=_NONE_IDLE,
        )
        self._streams = httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            timeout=None,
            trust_env=False,
            limits=_NONE_IDLE,
        )

    def close(self) -> None:
        """No request may be under way: none leaves a connection open."""
        self._client.close()

    def healthy(self, within_s: float = _WAIT_S) -> bool:
        """Whether it has loaded its model and answers."""
        try:
            return self._client.get("/health", timeout=within_s).status_code == 200
        except httpx.HTTPError:
            return False

    def speaks(self, within_s: float) -> bool:
        """Whether it says anything at all within this time, if only that it loads its model."""
        return self._says("/health", within_s)

    def answers(self, within_s: float) -> bool:
        """Whether the loop that computes says something of its slots within this time."""
        return self._says("/slots", within_s)

    def _says(self, route: str, within_s: float) -> bool:
        try:
            self._client.get(route, timeout=within_s)
        except httpx.HTTPError as error:
            # Where we cannot even ask, it is not the server that says nothing.
            return _no_files(error)
        return True

    def _get(self, route: str) -> Any:
        try:
            response = self._client.get(route)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineGone(f"llama-server does not answer at {route}", found=str(error)) from None

    @property
    def n_slots(self) -> int:
        return len(self._get("/slots"))

    def busy(self, slot: int) -> bool:
        """Whether the slot works on something."""
        return any(each["id"] == slot and each["is_processing"] for each in self._get("/slots"))

    def wait_idle(self, slot: int | None = None) -> list[int]:
        """Returns the slots once none of them, or this one, works on anything."""
        while True:
            slots = self._get("/slots")
            busy = [each["id"] for each in slots if each["is_processing"]]
            if not (slot in busy if slot is not None else busy):
                return [each["id"] for each in slots]
            time.sleep(_IDLE_LOOK_S)  # it has no way to tell

    # -- the proof

    def probe_tokens(self) -> list[int]:
        """Token ids that the model has: a few letters."""
        text = "abcdefghijklmnopqrstuvwxyz"
        try:
            answer = self._client.post("/tokenize", json={"content": text, "add_special": False})
            tokens = [int(token) for token in answer.raise_for_status().json()["tokens"]]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise HookError("llama-server does not make tokens", found=str(error)) from None
        # A vocabulary that has the alphabet as one word still gives tokens enough.
        return (tokens * N_PROBE_TOKENS)[:N_PROBE_TOKENS]

    def probe(self, tokens: Sequence[int], slot: int) -> object:
        """An `interface.Ask`. A whole character is drawn: for half of one the server leaves probabilities out."""
        body = {
            "prompt": list(tokens),
            "id_slot": slot,
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": 5,
            "cache_prompt": False,
            "logit_bias": [["a", 1e6]],
        }
        try:
            answer = self._client.post("/completion", json=body, timeout=_PROBE_S)
            told = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise HookError(
                "llama-server does not answer a known prompt", found=str(error)
            ) from None
        self.wait_idle(slot)
        return told.get("completion_probabilities")

    # -- requests, in an event loop

    def send(self, route: str, body: Mapping[str, Any], slot: int) -> Sent:
        """Sends a request for a free slot."""
        request = self._streams.build_request("POST", route, json=dict(body))
        return Sent(self, asyncio.ensure_future(self._streams.send(request, stream=True)), slot)


class Sent:
    """A request on its way to a slot, and its answer. Belongs to an event loop."""

    def __init__(
        self, upstream: Upstream, sending: asyncio.Future[httpx.Response], slot: int
    ) -> None:
        self._upstream = upstream
        self._sending = sending
        self._slot = slot

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the events of the answer.

        Raises:
            UsageError: the server says that the request is wrong; in its words.
            EngineGone: it went away, or failed.
        """
        try:
            # Whoever waits here may go away before the server has taken the request: see `close`.
            response = await asyncio.shield(self._sending)
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread(), begun=False)
            async with aclosing(_events(response)) as events:
                async for event in events:
                    yield event
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise EngineGone(
                "llama-server went away in the middle of a request",
                found=str(error) or type(error).__name__,
            ) from None

    async def close(self) -> None:
        """Hangs up, and the server ends the answer; it may go on for a moment (`Upstream.wait_idle`).

        A server that is hung up on before it has begun may begin all the same, a moment later, when its slot looks free
        and is somebody else's. So that is waited for.
        """
        while not self._sending.done():
            try:
                if await asyncio.to_thread(self._upstream.busy, self._slot):
                    break
            except EngineGone:
                pass  # it has ended, which ends the sending, or is too busy to say
            await asyncio.wait([self._sending], timeout=_IDLE_LOOK_S)
        self._sending.cancel()
        with suppress(asyncio.CancelledError, httpx.HTTPError):
            response = await self._sending
            await response.aclose()


def _no_files(error: BaseException | None) -> bool:
    """Whether it comes of too many open files, of ours or of the machine."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    rest = b""
    # By bytes: a text's own line separators end no line here.
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            name, _, data = line.partition(b": ")
            if name == b"error":
                raise _refusal(500, data)
            if name != b"data" or data == b"[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise _refusal(event["error"].get("code", 500), data)
            yield event


def _refusal(status: int, body: bytes, begun: bool = True) -> ScopeError:
    """What the server says against a request; its own faults are not for its caller."""
    try:
        told = json.loads(body)
        message = str(told.get("error", told).get("message", ""))
    except (ValueError, AttributeError):
        message = body.decode(errors="replace")
    message = message.splitlines()[0][:300] if message else f"status {status}"
    if 400 <= status < 500 and status not in (401, 403, 404):
        return UsageError(message)
    if status == 500 and not begun and not message.startswith(_FAULTS):
        return NotTaken(message)
    return EngineGone("llama-server failed on a request", found=message)
