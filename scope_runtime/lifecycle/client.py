"""The client of the control channel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from scope_runtime.errors import Location, ScopeError
from scope_runtime.files import cache_folder

VARIABLE = "SCOPE_CONTROL"


class ControlError(ScopeError):
    """Nobody answers at the control socket, or what was asked was refused."""


class RefusedError(ControlError):
    """What was asked was refused; prints and reports as the running process said it."""

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__(str(said.get("message")))
        self.said = said

    def __str__(self) -> str:
        return str(self.said.get("text") or self.message)

    def fields(self) -> dict[str, object]:
        return {key: value for key, value in self.said.items() if key != "text"}


def default_socket() -> Path:
    """``$SCOPE_CONTROL``; else ``control.sock`` in ``$XDG_RUNTIME_DIR/scope-runtime``, or in the cache without one."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(runtime) / "scope-runtime" if runtime else cache_folder()) / "control.sock"


class ControlClient:
    """Asks the process that serves at a socket.

    Args:
        timeout_s: for an answer; a reload answers when it is done.
    """

    def __init__(self, socket: Path, *, timeout_s: float = 180.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)),
            base_url="http://scope",
            timeout=timeout_s,
        )

    def get(self, path: str) -> Any:
        """The JSON that is there. Raises ControlError."""
        return self._answer(self._client.build_request("GET", path))

    def post(self, path: str, body: dict[str, str | None], *, if_match: str | None = None) -> Any:
        """Asks for something to be done and returns what was. Raises ControlError, with the whole reason."""
        headers = {"If-Match": f'"{if_match}"'} if if_match else {}
        given = {key: value for key, value in body.items() if value is not None}
        return self._answer(self._client.build_request("POST", path, json=given, headers=headers))

    def _answer(self, request: httpx.Request) -> Any:
        try:
            if not self._socket.is_socket():
                raise self._nobody("no socket")
            answer = self._client.send(request)
        except httpx.ReadTimeout:
            raise ControlError(
                f"no answer in {self._timeout_s:g} s",
                location=Location(str(self._socket)),
                hint="It may still be done: ask `scope status`",
            ) from None
        except (httpx.HTTPError, OSError) as reason:
            said = reason.strerror if isinstance(reason, OSError) else None
            raise self._nobody(said or str(reason) or type(reason).__name__) from None
        try:
            data = answer.json()
        except ValueError:
            raise ControlError(
                "the process at the control socket fails",
                location=Location(str(self._socket)),
                found=f"{answer.status_code} {answer.text[:200]}",
                hint="Its own output says why",
            ) from None
        if answer.is_success:
            return data
        raise RefusedError(data if isinstance(data, dict) else {"message": str(data)})

    def _nobody(self, found: str) -> ControlError:
        return ControlError(
            "nobody answers at the control socket",
            location=Location(str(self._socket)),
            found=found,
            hint="Is a runtime with a control socket running? Name its socket with --control",
        )

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
