"""``scope serve`` over an unmodified llama-server: as a client sees it, and as an operator does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.attached import server as server_module
from scope_runtime.attached.arguments import REFUSED, ServerCommand
from scope_runtime.attached.server import ServerFolder
from scope_runtime.errors import HookError
from scope_runtime.types import ModelShape
from tests.conftest import Scope
from tests.serve.conformance import CHECKS, Endpoint
from tests.serve.conftest import CONFIG, MODEL, OTHER, USER, Server, furnish, serving
from tests.support.stock_server import server_path

STATE = CONFIG.replace("policy: {path: policies}", "policy: {path: policies, state: state}")
OPTIONS = ("-np", "4", "-c", "2048", "-t", "1", "--no-repack", "--no-webui")

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: {tenant}, generation: {generation}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  selector: {{tenant: {tenant}}}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: {feature}}}
  rules:
    - {{name: push, amplify: f, alpha: {alpha}}}
"""

ASKED = {"prompt": "the sea is", "max_tokens": 24, "temperature": 0}
LONG = {**ASKED, "max_tokens": 400, "logit_bias": {"0": -100, "2": -100}, "stream": True}


def policy(tenant: str, feature: int, alpha: float, generation: int = 1) -> str:
    return POLICY.format(tenant=tenant, feature=feature, alpha=alpha, generation=generation)


def furnished(folder: Path) -> Path:
    """A folder with a policy for each of two tenants."""
    furnish(folder, STATE)
    policies = folder / "policies"
    (policies / "english-only.yaml").unlink()
    (policies / "acme.yaml").write_text(policy("acme", 767, 30), encoding="utf-8")
    (policies / "globex.yaml").write_text(policy("globex", 28, 30), encoding="utf-8")
    return folder


@contextmanager
def attached(folder: Path, *more: str, wait: bool = True) -> Iterator[Server]:
    engine = ("--engine", "llama-server", "--llama-server", str(server_path()))
    with serving(
        folder, "--config", "scope.yaml", *engine, "--", *OPTIONS, *more, wait=wait
    ) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only ask."""
    with attached(furnished(tmp_path_factory.mktemp("attached") / "site")) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return furnished(tmp_path / "site")


def ask(server: Server, key: str = USER, **changes: Any) -> dict[str, Any]:
    with server.client(key) as client:
        response = client.post("/v1/completions", json={**ASKED, **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def server_pid(server: Server, what: str = "started") -> int:
    found = re.match(r"process (\d+)", server.wait_for(f"llama-server {what}: "))
    assert found is not None
    return int(found[1])


def runs(pid: int) -> bool:
    """Whether there is such a process. One that nobody has waited for is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(") ")[2][0] != "Z"


def record_of(server: Server, request_id: str) -> dict[str, Any]:
    (found,) = [
        record
        for record in server.records()
        if record.get("request_id") == request_id and record["what"] == "summary"
    ]
    return found


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

    def cached(answer: dict[str, Any]) -> int:
        n: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return n

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


def test_a_reload_reaches_an_answer_at_its_next_token(site: Path) -> None:
    with attached(site) as server, server.client() as client, server.admin() as admin:
        with client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
            before = json.loads(next(lines)[6:])
            (site / "policies" / "acme.yaml").write_text(policy("acme", 843, -30, 2))
            assert admin.post("/-/reload", json={}).status_code == 200
            *_, last = lines
        told = json.loads(last[6:])["scope"]
        assert len(told["revisions"]) == 2
        assert told["revisions"][0]["revision"] == stream.headers["x-scope-revision"]
        position = told["revisions"][1]["from_position"]
        assert 3 < position < 400
        assert before["choices"][0]["text"]
        assert record_of(server, told["request_id"])["revisions"] == told["revisions"]
        # Off reaches all of them, too.
        assert admin.post("/-/off", json={"reason": "a test"}).status_code == 200
        assert ask(server)["scope"]["revisions"][0]["revision"] == "none"
        assert admin.post("/-/on", json={}).status_code == 200
        assert ask(server)["scope"]["revisions"] == [
            {"revision": told["revisions"][1]["revision"], "from_position": 0}
        ]


def test_whoever_goes_away_frees_the_slot(server: Server) -> None:
    name = "gone-away"
    with server.client() as client:
        head = {"x-request-id": name}
        with client.stream("POST", "/v1/completions", json=LONG, headers=head) as stream:
            next(stream.iter_lines())
    with ThreadPoolExecutor(4) as threads:
        assert len({text_of(each) for each in threads.map(lambda _: ask(server), range(4))}) == 1
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
        with server.told:
            assert server.told.wait_for(
                lambda: sum("llama-server started: " in line for line in server.said) == 2, 60
            )
        while client.get("/ready").status_code != 200:
            pass
        assert text_of(ask(server)) == plain
        whats = [record["what"] for record in server.records()]
        assert whats.index("server-lost") < len(whats) - 1 - whats[::-1].index("server-started")
        record = next(r for r in server.records() if r.get("finish_reason") == "error")
        assert record["revisions"][0]["revision"].startswith("sha256:")
        assert server.stop() == 0


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


@pytest.mark.parametrize("flag", ["--host", "--control-vector"])
def test_arguments_that_are_the_gateways_are_refused(flag: str, site: Path, scope: Scope) -> None:
    command = ["serve", "--engine", "llama-server", "--llama-server", str(server_path())]
    command += ["-P", str(site / "policies"), "--", "-m", str(MODEL), flag, "x"]
    done = scope(*command)
    assert done.returncode == 2
    assert f"{flag} cannot be given to llama-server here: {REFUSED[flag]}" in done.stderr


def test_a_static_program_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, program = tmp_path / "static.c", tmp_path / "static"
    source.write_text("#include <unistd.h>\nint main(void) { pause(); return 0; }\n")
    subprocess.run(["g++", "-x", "c", "-static", source, "-o", program], check=True)
    monkeypatch.setattr(server_module, "LOAD_HOOK_S", 0.2)
    command = ServerCommand(program, MODEL, ("-m", str(MODEL)))
    folder = ServerFolder(tmp_path / "state", command, lambda line: None)
    try:
        with pytest.raises(HookError, match="the server has started without the hook") as caught:
            folder.start(ModelShape("qwen3", 4, 256))
        assert "static program" in str(caught.value)
        assert not list((tmp_path / "state").glob("control-*"))
    finally:
        folder.close()


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    folder = furnished(tmp_path / "site")
    with attached(folder, "--no-such-argument", wait=False) as server:
        assert server.process.wait(timeout=60) == 1
    assert any("llama-server did not start: exit status 1" in line for line in server.said)
    assert any("--no-such-argument" in line for line in server.said)
