"""From loading to the end of the process: probes, signals, what a reload takes up."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from scope_runtime.cli.main import main
from scope_runtime.errors import HookError
from scope_runtime.inspect.reader import Reader
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.sampling import Sampling
from scope_runtime.metrics import Metrics
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource
from scope_runtime.serve.admin import Control
from scope_runtime.serve.app import public_app
from scope_runtime.serve.ask import Ask, Began, Done, Item, Reads
from scope_runtime.serve.gateway import ANYBODY, Gateway
from scope_runtime.serve.keys import KeyRing, digest
from scope_runtime.serve.options import ServeOptions
from tests.conftest import Scope
from tests.lifecycle.conftest import until
from tests.serve.conftest import CONFIG, KEYS, USER, Server, furnish, serving

ASKED = {"prompt": "the sea is", "max_tokens": 4, "temperature": 0}
LONG = {**ASKED, "max_tokens": 16_000, "logit_bias": {"0": -100, "2": -100}, "stream": True}


class FakeEngine:
    """Answers when it is told to."""

    slots = 1
    takes: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fails: Exception | None = None

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        yield Began("sha256:abc", 1)
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        yield Piece("fine")
        yield Done("stop", (), (), 1, 0, 1)

    def compile(self, policies: Sequence[Policy]) -> ProgramSource:
        raise NotImplementedError

    @property
    def reads(self) -> Reads:
        raise NotImplementedError

    def reading(self) -> AbstractContextManager[Reader]:
        raise NotImplementedError

    async def close(self) -> None: ...


Test = Callable[[Gateway, FakeEngine, httpx.AsyncClient], Awaitable[None]]


def with_gateway(test: Test, **options: Any) -> None:
    async def run() -> None:
        stale = options.pop("stale", None)
        gateway = Gateway(ServeOptions(**options), "tiny", KeyRing(None), lambda: stale)
        transport = httpx.ASGITransport(public_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await test(gateway, FakeEngine(), client)

    asyncio.run(run())


def test_behaviour_24_not_ready_while_loading_and_alive_all_the_same() -> None:
    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": "loading"})
        assert (await client.get("/health")).status_code == 200
        early = await client.post("/v1/completions", json=ASKED)
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "loading"
        assert early.headers["retry-after"]
        gateway.serve(engine)
        assert (await client.get("/ready")).status_code == 200

    with_gateway(test)


@pytest.mark.parametrize("asked", [True, False])
def test_behaviour_24_a_stale_policy_makes_unready_if_asked_and_never_dead(asked: bool) -> None:
    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        gateway.serve(engine)
        assert (await client.get("/ready")).status_code == (503 if asked else 200)
        assert (await client.get("/health")).status_code == 200

    with_gateway(test, unready_when_stale=asked, stale="policies are stale")


def test_behaviours_24_and_25_draining_is_unready_and_lets_answers_end() -> None:
    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        gateway.serve(engine)
        running = asyncio.ensure_future(client.post("/v1/completions", json=ASKED))
        while not gateway.n_running:
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(gateway.drain())
        await asyncio.sleep(0)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
        assert (await client.get("/health")).status_code == 200
        late = await client.post("/v1/completions", json=ASKED)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert not draining.done()
        engine.go.set()
        assert (await running).json()["choices"][0]["text"] == "fine"
        await draining

    with_gateway(test)


def test_behaviour_25_what_has_not_ended_at_the_deadline_is_ended() -> None:
    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        gateway.serve(engine)
        running = asyncio.ensure_future(client.post("/v1/completions", json=ASKED))
        streamed = asyncio.ensure_future(
            client.post("/v1/completions", json={**ASKED, "stream": True})
        )
        while gateway.n_waiting + gateway.n_running < 2:
            await asyncio.sleep(0)
        await gateway.drain()
        assert (await running).status_code == 503
        assert "draining" in (await streamed).text
        assert (gateway.n_waiting, gateway.n_running) == (0, 0)

    with_gateway(test, drain_s=0.01)


def test_behaviour_25_a_client_that_does_not_read_delays_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scope_runtime.serve.gateway.LAST_WORD_S", 0.01)

    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        gateway.serve(engine)
        ask = Ask("the sea is", None, Sampling(), {}, "unread")
        job = gateway.job(engine.answer, [ask], {}, ANYBODY)
        await gateway.drain()
        await job.close()
        assert gateway.n_running == 0

    with_gateway(test, drain_s=0.01)


@pytest.mark.parametrize("error", [HookError("/secret/place is gone"), ValueError("/secret/place")])
def test_a_fault_is_told_to_the_operator_and_not_to_the_client(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        gateway.serve(engine)
        engine.fails = error
        engine.go.set()
        failed = await client.post("/v1/completions", json=ASKED)
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "internal_error"
        assert "secret" not in failed.text
        streamed = await client.post("/v1/completions", json={**ASKED, "stream": True})
        assert "internal_error" in streamed.text
        assert "secret" not in streamed.text
        assert "[DONE]" not in streamed.text
        assert gateway.n_running == 0

    with_gateway(test)
    assert capfd.readouterr().err.count("/secret/place") >= 2


# -- a process


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    furnish(folder, CONFIG.replace("ctx: 512", "ctx: 16384"))
    return folder


def lines_of(stream: httpx.Response) -> Iterator[str]:
    return (line.removeprefix("data: ") for line in stream.iter_lines() if line)


def test_behaviour_25_sigterm_lets_a_stream_end(site: Path) -> None:
    with serving(site) as server, server.client() as client:
        asked = {**LONG, "max_tokens": 200}
        with client.stream("POST", "/v1/completions", json=asked) as stream:
            lines = lines_of(stream)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last, end = lines
        assert end == "[DONE]"
        assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(timeout=60) == 0
    assert [line for line in server.said if not line.startswith(("policy: ", "note: "))][2:] == []


def test_a_second_signal_ends_at_once_and_the_record_is_whole(site: Path, scope: Scope) -> None:
    with serving(site) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = lines_of(stream)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not client_ready(server), "it drains")
            server.process.send_signal(signal.SIGTERM)
            *_, last = lines
        assert json.loads(last)["error"]["code"] == "draining"
        assert server.process.wait(timeout=60) == 0
    (record,) = [r for r in server.records() if r["what"] == "summary"]
    assert record["finish_reason"] == "cancelled"
    assert scope("audit", "verify", site / "audit" / "events.jsonl").returncode == 0


def client_ready(server: Server) -> bool:
    with server.client() as client:
        return client.get("/ready").status_code == 200


def test_sighup_takes_up_keys_and_policies_all_or_nothing(site: Path) -> None:
    with serving(site) as server, server.client() as client, server.admin() as admin:

        def status() -> dict[str, Any]:
            found: dict[str, Any] = admin.get("/-/policies").json()
            return found

        revision = status()["revision"]
        policy = site / "policies" / "english-only.yaml"
        (site / "keys.yaml").write_text("kind: Nothing\n", encoding="utf-8")
        policy.write_text(policy.read_text().replace("generation: 1", "generation: 2"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: not status()["success"], "the reload is refused")
        assert status()["revision"] == revision
        assert client.get("/v1/models").status_code == 200
        (site / "keys.yaml").write_text(KEYS.replace(digest(USER), digest("next")))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: status()["success"], "the reload is taken up")
        assert client.get("/v1/models").status_code == 401
        with server.client("next") as other:
            assert other.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config", "scope.yaml", "-m", "model.gguf"), "--config says which model"),
        (("-m", "model.gguf"), "no policies are given"),
        (("-P", "policies"), "no model is given"),
        (("-m", "model.gguf", "-P", "policies", "--host", "0.0.0.0"), "without keys, anybody"),
        (("-m", "model.gguf", "-P", "policies", "--admin", ":0"), "needs a key of its own"),
        (("-m", "model.gguf", "-P", "policies", "--admin", "nowhere"), "not an address"),
        (("-m", "model.gguf", "-P", "policies", "--keys", "none.yaml"), "the keys cannot be read"),
        (("-m", "none.gguf", "-P", "policies", "--port", "0"), "none.gguf"),
        (("--config", "bad.yaml"), "bad.yaml:9:"),
    ],
)
def test_what_cannot_start_says_why(
    site: Path,
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (site / "bad.yaml").write_text(CONFIG.replace('admin: ":0"', "admin: nowhere"))
    monkeypatch.chdir(site)
    assert main(["serve", *arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_a_unix_socket_is_an_admin_listener_without_keys(site: Path) -> None:
    arguments = ("-m", "model.gguf", "-P", "policies", "--port", "0", "--admin", "unix:adm.sock")
    with serving(site, *arguments) as server:
        transport = httpx.HTTPTransport(uds=str(site / "adm.sock"))
        with httpx.Client(transport=transport, base_url="http://admin") as admin:
            assert admin.get("/-/policies").json()["success"]
            assert admin.get("/ready").json()["ready"]
        with server.client(None) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
        assert model == "model"
    assert not (site / "adm.sock").exists()


def test_whoever_waits_in_the_gateway_is_in_the_metrics() -> None:
    metrics = Metrics()

    async def test(gateway: Gateway, engine: FakeEngine, client: httpx.AsyncClient) -> None:
        Control(SimpleNamespace(metrics=metrics)).count(gateway)  # type: ignore[arg-type]
        gateway.serve(engine)
        assert metrics.registry.get_sample_value("scope_requests_deferred") == 0
        asked = [
            asyncio.ensure_future(client.post("/v1/completions", json=ASKED))
            for _ in range(engine.slots + 2)
        ]
        while gateway.n_waiting < 2:
            await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("scope_requests_deferred") == 2
        engine.go.set()
        for each in asked:
            assert (await each).status_code == 200
        assert metrics.registry.get_sample_value("scope_requests_deferred") == 0

    with_gateway(test)


def test_behaviour_21_a_signal_that_comes_while_the_model_loads_is_not_lost(
    tmp_path: Path, scope: Scope
) -> None:
    furnish(tmp_path)
    with serving(tmp_path, wait=False) as server:
        status = Path(f"/proc/{server.process.pid}/status")

        def held() -> bool:
            line = next(x for x in status.read_text().splitlines() if x.startswith("SigBlk"))
            return bool(int(line.split()[1], 16) & 1 << signal.SIGUSR1 - 1)

        until(held, "signals are held")
        server.process.send_signal(signal.SIGUSR1)
        server.base_url = server.wait_for("ready: ")
        until(
            lambda: any(
                r.get("what") == "off" and r["actor"] == "SIGUSR1" for r in server.records()
            ),
            "it is switched off",
        )
        assert server.stop() == 0
