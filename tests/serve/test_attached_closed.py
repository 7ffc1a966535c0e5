"""No answer goes out that is not steered where it must be: the whole gateway over a server that is made up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from scope_runtime.attached import runtime as module
from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.interface import SlotState
from scope_runtime.attached.runtime import AttachedRuntime
from scope_runtime.errors import HookError
from scope_runtime.lifecycle import Options
from scope_runtime.native.hook import Span
from scope_runtime.serve.app import public_app
from scope_runtime.serve.attached import AttachedEngine
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import KeyRing
from scope_runtime.serve.options import ServeOptions
from tests.conftest import ROOT
from tests.serve.conftest import MODEL

TEXT = "what nobody may read"
POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: p}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  mode: {mode}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: 767}}
  rules:
    - {{name: push, amplify: f, alpha: 30}}
"""
EVENTS = [
    {"content": TEXT, "tokens": [5], "timings": {"prompt_n": 3, "predicted_n": 1}},
    {"content": "", "stop": True, "stop_type": "limit", "timings": {"prompt_n": 3}},
]


@dataclass
class Hook:
    """Of one slot, on which everything goes well but for what a test changes."""

    alive: bool = True
    serial: int = 0
    n_unmatched: int = 0
    state: SlotState = field(
        default_factory=lambda: SlotState(0, None, 0, 0, 0, 0, 0, None, -1, None, ())
    )
    programs: dict[int, str] = field(default_factory=dict)
    refuses: str | None = None  # what it does not do

    @property
    def status(self) -> Any:
        return SimpleNamespace(
            pid=1, words=(), n_unmatched=self.n_unmatched, n_ubatches=0, swap_ns=0, n_dropped=0
        )

    def _do(self, what: str) -> None:
        if self.refuses == what:
            raise HookError("the server's hook did not answer within 60 s")

    def hold(self, blob: bytes) -> int:
        self._do("hold")
        self.serial += 1
        return self.serial

    def release(self, serial: int) -> None: ...

    def assign(self, programs: dict[int, int], others: int = 0) -> None: ...

    def begin(self, slot: int, request_id: int, serial: int) -> SlotState:
        self._do("begin")
        self.state = replace(self.state, request_id=request_id, serial=serial)
        return self.state

    def end(self, slot: int) -> SlotState:
        self._do("end")
        spans = (Span(0, 3, self.state.serial),)
        self.state = replace(self.state, request_id=None, spans=spans, answer_start=2)
        return self.state

    def slot(self, slot: int) -> SlotState:
        return self.state

    def drain(self) -> list[Any]:
        return []

    def computes(self, **changes: int) -> None:
        self.state = replace(self.state, **changes)


@dataclass
class Server:
    """An Upstream that answers at once; ``computing``: told when it does."""

    computing: Callable[[], None]
    n_slots: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)

    def send(self, route: str, body: dict[str, Any], slot: int) -> Any:
        self.asked.append(body)
        return SimpleNamespace(events=self._events, close=self._close)

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        first, last = EVENTS
        yield first
        self.computing()
        yield last

    async def _close(self) -> None: ...

    def wait_idle(self, slot: int) -> None: ...


class Supervisor:
    """Has the server that a test made up."""

    server: Any

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def begin(self, keeper: Any) -> None:
        keeper.came(self.server)

    def kill(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Place:
    """What came of a request."""

    response: httpx.Response
    asked: list[dict[str, Any]]
    records: list[Any]


def ask(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: Callable[[Hook], None],
    *,
    fail: str = "closed",
    mode: str = "enforce",
    stream: bool = False,
) -> Place:
    hook = Hook()
    upstream = Server(lambda: changed(hook))
    process = SimpleNamespace(ended=lambda timeout_s=0.0: False)
    monkeypatch.setattr(module, "Supervisor", Supervisor)
    Supervisor.server = SimpleNamespace(
        hook=hook, upstream=upstream, process=process, adopted=False, close=lambda: None
    )
    policy = tmp_path / "p.yaml"
    shutil.copytree(ROOT / "policies" / "packs", tmp_path / "packs")
    policy.write_text(POLICY.format(mode=mode), encoding="utf-8")
    runtime = AttachedRuntime(
        ServerCommand(Path("llama-server"), MODEL, ()),
        policy,
        folder=tmp_path / "server",
        say=lambda line: None,
        watch=Options(fail=fail),
    )
    if hook.refuses is None:
        changed(hook)  # some is wrong from the start

    async def run() -> httpx.Response:
        gateway = Gateway(ServeOptions(), "tiny", KeyRing(None))
        gateway.serve(AttachedEngine(runtime))
        transport = httpx.ASGITransport(public_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            asked = {"prompt": "the sea", "max_tokens": 1, "stream": stream}
            response = await client.post("/v1/completions", json=asked)
            await gateway.engine.close()
            return response

    response = asyncio.run(run())
    return Place(response, upstream.asked, list(runtime.events()))


def nothing(hook: Hook) -> None: ...


def refuses(what: str) -> Callable[[Hook], None]:
    return lambda hook: setattr(hook, "refuses", what)


FAILURES: dict[str, tuple[Callable[[Hook], None], str]] = {
    "unsteered columns": (lambda hook: hook.computes(n_unsteered=2), "2 tokens were not steered"),
    "missed hook points": (
        lambda hook: setattr(hook, "n_unmatched", hook.n_unmatched + 1),
        "hook points were missed",
    ),
    "stray columns": (
        lambda hook: hook.computes(n_stray=hook.state.n_stray + 1),
        "tokens were computed for nobody",
    ),
    "a lost hook": (refuses("end"), "its hook did not tell what was done"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_behaviour_23_an_answer_that_was_not_steered_is_refused(
    failure: str, stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, why = FAILURES[failure]
    place = ask(tmp_path, monkeypatch, changed, stream=stream)
    if stream:
        assert '"code":"not_steered"' in place.response.text
        assert "[DONE]" not in place.response.text
        assert '"scope"' not in place.response.text
    else:
        assert place.response.status_code == 502
        assert place.response.json()["error"]["code"] == "not_steered"
        assert TEXT not in place.response.text
    assert why in place.response.text
    assert [r.what for r in place.records if r.what in ("unsteered", "summary")]


@pytest.mark.parametrize("failure", FAILURES)
def test_behaviour_23_fail_open_and_audit_serve_it_and_say_so(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, why = FAILURES[failure]
    for name, said in {"open": {"fail": "open"}, "audit": {"mode": "audit"}}.items():
        folder = tmp_path / name
        folder.mkdir()
        place = ask(folder, monkeypatch, changed, **said)
        assert place.response.status_code == 200, place.response.text
        assert place.response.json()["choices"][0]["text"] == TEXT
        (unsteered,) = [r for r in place.records if r.what == "unsteered"]
        assert why in unsteered.detail["reason"]


def test_behaviour_23_a_request_that_the_hook_does_not_take_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ask(tmp_path, monkeypatch, refuses("begin"))
    assert place.response.status_code == 502
    assert place.response.json()["error"]["code"] == "not_steered"
    assert place.asked == []


def test_what_is_steered_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ask(tmp_path, monkeypatch, nothing)
    assert place.response.status_code == 200, place.response.text
    assert place.response.json()["choices"][0]["text"] == TEXT
    assert not [r for r in place.records if r.what == "unsteered"]
