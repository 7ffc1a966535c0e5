"""``scope serve`` over an unmodified llama-server: as a client sees it, and as an operator does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.attached.arguments import REFUSED
from scope_runtime.runtime import Runtime
from tests.conftest import Scope
from tests.serve.conformance import CHECKS, Endpoint
from tests.serve.conftest import HANGS_S, MODEL, OTHER, USER, Server, serving
from tests.serve.over_server import (
    ASKED,
    ENDLESS,
    ENDS,
    HANGS_SOON,
    LONG,
    STATE,
    ask,
    attached,
    cached,
    furnished,
    policy,
    record_of,
    runs,
    server_pid,
    text_of,
    wait_for_end,
)
from tests.support.stock_server import server_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only ask."""
    with attached(furnished(tmp_path_factory.mktemp("attached") / "site")) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return furnished(tmp_path / "site")


@pytest.mark.parametrize("name", CHECKS)
def test_a_client_gets_what_it_expects(server: Server, name: str) -> None:
    CHECKS[name](Endpoint(server.base_url, server.model, server.key))


def test_tenants_side_by_side_get_what_each_gets_alone(server: Server) -> None:
    alone = {key: text_of(ask(server, key)) for key in (USER, OTHER)}
    assert alone[USER] != alone[OTHER]
    keys = [USER, OTHER] * 6
    with ThreadPoolExecutor(len(keys)) as threads:
        assert list(threads.map(lambda key: text_of(ask(server, key)), keys)) == [
            alone[key] for key in keys
        ]


def test_a_prompt_is_reused_under_its_own_policy_alone(server: Server) -> None:
    """In whatever slot the other tenant's prompt lies, and whether or not it is the same."""
    prompt = "A prompt that is long enough to be worth keeping in a slot"
    first = ask(server, USER, prompt=prompt)
    again = ask(server, USER, prompt=prompt)
    other = [ask(server, OTHER, prompt=prompt) for _ in range(4)]

    assert cached(first) == 0
    assert cached(again) == again["usage"]["prompt_tokens"] - 1
    assert cached(other[0]) == 0
    assert text_of(again) == text_of(first)
    assert len({text_of(answer) for answer in other}) == 1


def test_what_a_client_does_not_decide_is_left_out(server: Server) -> None:
    plain = text_of(ask(server))
    stripped = ask(
        server, id_slot=3, cache_prompt=True, n_cache_reuse=1, lora=[{"id": 0, "scale": 9.0}]
    )
    assert text_of(stripped) == plain
    with server.client() as client:
        refused = client.post("/v1/completions", json={**ASKED, "n_keep": 3})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "n_keep"


def test_response_and_record_say_the_same(server: Server) -> None:
    answer = ask(server, OTHER, scope={"explain": True})
    told = answer["scope"]
    record = record_of(server, told["request_id"])
    assert record["revisions"] == told["revisions"]
    assert record["labels"] == {"tenant": "globex"}
    assert (record["n_prompt"], record["n_answer"]) == (
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
    )
    (rule,) = [each for each in told["report"] if each["what"] == "rule"]
    assert (rule["policy"], rule["rule"]) == ("globex", "push")
    # In the last block only columns are computed whose logits are wanted: one for each token of the answer.
    assert rule["n_tokens"] == record["n_answer"]


@pytest.mark.parametrize(
    "mistake",
    [
        {"reasoning_format": "bogus"},
        {"chat_template_kwargs": {"enable_thinking": "perhaps"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "bogus"},
        {"messages": [{"role": "user", "content": [{"type": "wat"}]}]},
        {"grammar": "root ::= nobody"},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_clients_mistake_that_llama_server_finds_is_told_as_one(
    server: Server, mistake: dict[str, Any]
) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **mistake}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_alert_ends_an_answer_where_the_embedded_engine_ends_it(
    server: Server, streamed: bool
) -> None:
    head = {"x-scope-labels": "team=watched"}
    asked = {**ASKED, "logit_bias": {"0": -100, "2": -100}, "stream": streamed}
    with server.client() as client:
        whole = text_of(client.post("/v1/completions", json={**asked, "stream": False}).json())
        response = client.post("/v1/completions", json=asked, headers=head)
    if streamed:
        events = [json.loads(line[6:]) for line in response.text.split("\n\n") if "{" in line]
        answer = {**events[-1], "choices": [{**events[-1]["choices"][0]}]}
        answer["choices"][0]["text"] = "".join(e["choices"][0]["text"] for e in events)
    else:
        answer = response.json()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    record = record_of(server, answer["scope"]["request_id"])
    assert (record["finish_reason"], record["labels"]["team"]) == ("abort", "watched")
    alerts = [r for r in server.records() if r["kind"] == "alert"]
    assert {alert["rule"] for alert in alerts} == {"enough"}
    labels = {"tenant": "acme", "team": "watched"}
    with Runtime(MODEL, server.folder / "policies", n_ctx=512, use_extra_bufts=False) as runtime:
        embedded = runtime.generate(
            ASKED["prompt"],
            labels=labels,
            max_tokens=24,
            temperature=0,
            logit_bias={0: -100, 2: -100},
        )
    assert embedded.finish_reason == "abort"
    assert answer["choices"][0]["text"] == embedded.text
    assert len(embedded.text) < len(whole)


def test_a_reload_reaches_an_answer_at_its_next_token(site: Path) -> None:
    """The answer has no end of its own: it is the new policy that ends it, whenever that comes."""
    with (
        attached(site, "--context-shift") as server,
        server.client() as client,
        server.admin() as admin,
    ):
        with client.stream("POST", "/v1/completions", json=ENDLESS) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
            next(lines)
            new = policy("acme", 843, -30, 2) + ENDS
            (site / "policies" / "acme.yaml").write_text(new, encoding="utf-8")
            assert admin.post("/-/reload", json={}).status_code == 200
            *_, last = lines
        told = json.loads(last[6:])["scope"]
        before, now = told["revisions"]
        assert told["finish_reason"] == "abort"
        assert before["revision"] == stream.headers["x-scope-revision"] != now["revision"]
        assert before["from_position"] == 0 < now["from_position"]
        assert record_of(server, told["request_id"])["revisions"] == told["revisions"]
        # Off reaches all of them, too.
        assert admin.post("/-/off", json={"reason": "a test"}).status_code == 200
        assert ask(server)["scope"]["revisions"] == [{"revision": "none", "from_position": 0}]
        assert admin.post("/-/on", json={}).status_code == 200
        assert ask(server)["scope"]["revisions"] == [{**now, "from_position": 0}]


def test_whoever_goes_away_frees_the_slot(server: Server) -> None:
    name = "gone-away"
    with server.client() as client:
        head = {"x-request-id": name}
        with client.stream("POST", "/v1/completions", json=LONG, headers=head) as stream:
            next(stream.iter_lines())
    with ThreadPoolExecutor(4) as threads:
        assert len({text_of(each) for each in threads.map(lambda _: ask(server), range(4))}) == 1
    wait_for_end(server, name)
    record = record_of(server, name)
    assert record["finish_reason"] == "cancelled"
    assert 0 < record["n_answer"] < LONG["max_tokens"]


def test_a_killed_server_fails_what_runs_and_comes_back(site: Path) -> None:
    with attached(site) as server, server.client() as client:
        plain = text_of(ask(server))
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(server_pid(server), signal.SIGKILL)
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        server.wait_for("llama-server started: ", 2)
        assert client.get("/ready").status_code == 200
        assert text_of(ask(server)) == plain
        whats = [record["what"] for record in server.records()]
        assert whats.index("server-lost") < len(whats) - 1 - whats[::-1].index("server-started")
        record = next(r for r in server.records() if r.get("finish_reason") == "error")
        assert record["revisions"][0]["revision"].startswith("sha256:")
        assert server.stop() == 0


def test_a_hung_server_fails_what_waits_for_it_and_is_replaced(tmp_path: Path) -> None:
    """A stream, an answer that is waited for as a whole, and one that comes when the server hangs already."""
    site = furnished(tmp_path / "site", HANGS_SOON)
    with attached(site) as server, server.client() as client, ThreadPoolExecutor(2) as threads:
        plain = text_of(ask(server))
        pid = server_pid(server)

        def whole(name: str) -> Any:
            asked = {**LONG, "stream": False}
            return client.post("/v1/completions", json=asked, headers={"x-request-id": name})

        asked = {"json": LONG, "headers": {"x-request-id": "streams"}}
        with client.stream("POST", "/v1/completions", **asked) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(pid, signal.SIGSTOP)
            others = [threads.submit(whole, name) for name in ("waits", "waits-too")]
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        for other in others:
            answer = other.result()
            assert (answer.status_code, answer.json()["error"]["type"]) == (502, "server_error")
        server.wait_for("llama-server started: ", 2)
        assert not runs(pid)
        assert text_of(ask(server)) == plain
        (lost,) = [record for record in server.records() if record["what"] == "server-lost"]
        assert lost["how"] == "no sign of life for 6 s; ended by SIGKILL"
        assert record_of(server, "streams")["finish_reason"] == "error"
        assert server.stop() == 0


def test_whoever_interrupts_twice_leaves_no_server_running(site: Path) -> None:
    """Though the server does not listen, and nothing could be ended in turn."""
    with attached(site) as server, server.client() as client:
        pid = server_pid(server)
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            next(stream.iter_lines())
            os.kill(pid, signal.SIGSTOP)
            # Two of one kind could come as one.
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=HANGS_S) == 128 + signal.SIGTERM
    assert not runs(pid)


LOADS_FOR_EVER = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("loads", os.getpid(), flush=True)
signal.pause()
"""


def test_an_interrupt_while_a_server_loads_leaves_none_running(site: Path) -> None:
    engine = ("--engine", "llama-server", "--llama-server", sys.executable)
    loads = ("--", "-c", LOADS_FOR_EVER, "-m", "model.gguf")
    with serving(site, "--config", "scope.yaml", *engine, *loads, wait=False) as server:
        pid = int(server.wait_for("llama-server: loads "))
        assert runs(pid)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=HANGS_S) == 128 + signal.SIGTERM
    assert not runs(pid)


def test_a_killed_gateway_leaves_a_server_that_the_next_one_takes_over(site: Path) -> None:
    with attached(site) as server:
        pid = server_pid(server)
        plain = text_of(ask(server))
        asked = {"method": "POST", "url": "/v1/completions", "json": LONG}
        with server.client() as client, client.stream(**asked) as stream:
            next(stream.iter_lines())
            server.process.kill()
            server.process.wait()
    assert runs(pid)
    with attached(site) as server:
        assert server_pid(server, "adopted") == pid
        assert text_of(ask(server)) == plain
        assert server.stop() == 0
    assert not runs(pid)


def test_a_server_that_was_started_otherwise_is_replaced(site: Path) -> None:
    with attached(site) as server:
        pid = server_pid(server)
        server.process.kill()
        server.process.wait()
    with attached(site, "--threads-http", "4") as server:
        assert server.wait_for("the llama-server that was there is ended: ") == (
            "it was started otherwise"
        )
        assert server_pid(server) != pid
        assert ask(server)["choices"]
    assert not runs(pid)


def test_a_server_with_another_version_of_the_hook_is_replaced(site: Path) -> None:
    """As after an update: it would be told what it does not understand, and go on unsteered."""
    with attached(site) as server:
        pid = server_pid(server)
        plain = text_of(ask(server))
        server.process.kill()
        server.process.wait()
    (control,) = (site / "state" / "llama-server").glob("control-*/control")
    with control.open("r+b") as file:
        file.seek(len(b"SCOPESHM"))
        file.write((77).to_bytes(4, "little"))
    with attached(site) as server:
        assert server.wait_for("the llama-server that was there is ended: ") == (
            "the control file is of another version of the hook"
        )
        assert server_pid(server) != pid
        assert text_of(ask(server)) == plain
    assert not runs(pid)


def test_behaviour_25_a_stream_may_end_after_sigterm(site: Path) -> None:
    with attached(site) as server, server.client() as client:
        pid = server_pid(server)
        asked = {**LONG, "max_tokens": 300}
        with client.stream("POST", "/v1/completions", json=asked) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last, done = lines
        assert done == "data: [DONE]"
        told = json.loads(last.removeprefix("data: "))
        assert told["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(timeout=HANGS_S) == 0
    assert record_of(server, told["scope"]["request_id"])["n_answer"] == 300
    assert not runs(pid)


def test_behaviour_25_what_goes_on_past_the_deadline_is_ended(tmp_path: Path) -> None:
    config = STATE.replace("serve:\n", "serve:\n    drain_s: 0.2\n")
    site = furnished(tmp_path / "site", config)
    with attached(site, "--context-shift") as server, server.client() as client:
        pid = server_pid(server)
        asked = {"json": ENDLESS, "headers": {"x-request-id": "endless"}}
        with client.stream("POST", "/v1/completions", **asked) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert server.process.wait(timeout=HANGS_S) == 0
    assert record_of(server, "endless")["finish_reason"] == "cancelled"
    assert not runs(pid)


@pytest.mark.parametrize("flag", ["--host", "--control-vector"])
def test_arguments_that_are_the_gateways_are_refused(flag: str, site: Path, scope: Scope) -> None:
    command = ["serve", "--engine", "llama-server", "--llama-server", str(server_path())]
    command += ["-P", str(site / "policies"), "--", "-m", str(MODEL), flag, "x"]
    done = scope(*command)
    assert done.returncode == 2
    assert f"{flag} cannot be given to llama-server here: {REFUSED[flag]}" in done.stderr


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    folder = furnished(tmp_path / "site")
    with attached(folder, "--no-such-argument", wait=False) as server:
        assert server.process.wait(timeout=HANGS_S) == 1
    assert any("llama-server did not start: exit status 1" in line for line in server.said)
    assert any("--no-such-argument" in line for line in server.said)
