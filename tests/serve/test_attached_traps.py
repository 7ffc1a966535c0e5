"""What llama-server does with slots and KV that would make an answer somebody else's: none of it comes through."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from scope_runtime.attached.arguments import REFUSED
from tests.lifecycle.conftest import until
from tests.serve.conftest import OTHER, USER, Server
from tests.serve.over_server import (
    ASKED,
    ENDLESS,
    ask,
    attached,
    cached,
    endless,
    furnished,
    policy,
    record_of,
    text_of,
)
from tests.support.stock_server import server_path

N_SLOTS = 4
STEPS = {
    "s": r"selected slot by id \((\d+)\)",
    "l": r"launch_slot_: id +(\d+) ",
    "r": r"release: id +(\d+) ",
}
"""What llama-server's log says of a slot: selected, launched, released."""

PHASED = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: phased}
spec:
  model: {architecture: qwen3, layers: 4, width: 256}
  selector: {team: phased}
  features:
    f: {pack: packs/tiny-qwen3.gguf, layer: 2, id: 685}
  rules:
    - {name: late, amplify: f, alpha: 5, when: {phase: generation}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    site = furnished(tmp_path_factory.mktemp("traps") / "site")
    (site / "policies" / "phased.yaml").write_text(PHASED, encoding="utf-8")
    with attached(site, "--context-shift", "-c", str(256 * N_SLOTS)) as running:
        yield running


def explained(server: Server, key: str = USER) -> dict[str, Any]:
    return ask(server, key, scope={"explain": True})


def unsteered(server: Server) -> list[dict[str, Any]]:
    return [r for r in server.records() if r["what"] == "unsteered" or "n_unsteered" in r]


def test_a_prompt_comes_back_from_no_cache_beside_the_slots(server: Server) -> None:
    """llama-server's host cache would have kept it when the slot was given to others."""
    prompt = "Xylophones are what a slot held once, and what is asked again"
    assert cached(ask(server, prompt=prompt)) == 0
    for n in range(N_SLOTS):
        ask(server, prompt=f"{n} is what that slot holds now")
    assert cached(ask(server, prompt=prompt)) == 0


def test_a_busy_slot_is_nobody_elses(tmp_path: Path) -> None:
    """By llama-server's own word: in each slot a request is over before the next one is sent there."""
    with attached(furnished(tmp_path / "site")) as server:
        ask_side_by_side(server)
        assert server.stop() == 0
    of_slot: dict[str, str] = {}
    for line in server.said:
        for letter, pattern in STEPS.items():
            found = re.search(pattern, line)
            if found is not None:
                of_slot[found[1]] = of_slot.get(found[1], "") + letter
    assert len(of_slot) == N_SLOTS
    for slot, steps in of_slot.items():
        assert re.fullmatch("(slr)+", steps), (slot, steps)


def ask_side_by_side(server: Server) -> None:
    alone = {key: text_of(ask(server, key)) for key in (USER, OTHER)}
    keys = [USER, OTHER, OTHER] * N_SLOTS
    with ThreadPoolExecutor(len(keys)) as threads:
        answers = list(threads.map(lambda key: explained(server, key), keys))
    assert [text_of(answer) for answer in answers] == [alone[key] for key in keys]
    for answer in answers:
        (rule,) = [each for each in answer["scope"]["report"] if each["what"] == "rule"]
        assert rule["n_tokens"] == answer["usage"]["completion_tokens"]
    assert not unsteered(server)


def test_who_is_gone_before_the_server_begins_does_not_begin_in_anothers_slot(
    server: Server,
) -> None:
    """A slot looks free while its request is still read; it must not be given to the next one then."""
    plain = text_of(ask(server))
    place = urlsplit(server.base_url)
    names = [f"at-once-{n}" for n in range(4 * N_SLOTS)]

    def sent(name: str) -> socket.socket:
        body = json.dumps({**ENDLESS, "prompt": "so many words " * 12, "stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {USER}\r\n"
            f"content-type: application/json\r\nx-request-id: {name}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        connection = socket.create_connection((place.hostname or "", place.port or 0))
        connection.sendall(head.encode() + body)
        return connection

    for first in range(0, len(names), N_SLOTS):
        with ExitStack() as clients:
            for name in names[first : first + N_SLOTS]:
                clients.enter_context(sent(name))
            # They have slots, where the server has begun or not: see tests/attached/test_upstream.py.
            until(lambda: _n_processing(server) == N_SLOTS, "all of them have slots")
        with ThreadPoolExecutor(N_SLOTS) as threads:
            for answer in threads.map(lambda _: explained(server), range(N_SLOTS)):
                assert text_of(answer) == plain
                (rule,) = [each for each in answer["scope"]["report"] if each["what"] == "rule"]
                assert rule["n_tokens"] == answer["usage"]["completion_tokens"]
    assert not unsteered(server)
    assert {record_of(server, name)["finish_reason"] for name in names} == {"cancelled"}


def _n_processing(server: Server) -> int:
    with server.admin() as admin:
        told = admin.get("/metrics").text
    (n,) = re.findall(r"(?m)^scope_requests_processing(?:\{.*\})? (\S+)$", told)
    return int(float(n))


def test_several_answers_are_several_requests(server: Server) -> None:
    """In one request llama-server would take slots that nobody gave it."""
    answer = ask(server, n=3, seed=7, temperature=1)
    of_each = [each["request_id"] for each in answer["scope"]["choices"]]
    records = [record_of(server, name) for name in of_each]
    assert [name.rpartition(".")[2] for name in of_each] == ["0", "1", "2"]
    assert [record["sampling"]["seed"] for record in records] == [7, 8, 9]
    assert len({record["revisions"][0]["revision"] for record in records}) == 1
    assert not unsteered(server)


def test_a_shift_of_the_context_ends_nothing_and_is_steered(server: Server) -> None:
    """llama.cpp then sets inputs without a batch; a slot holds 256 tokens."""
    with endless(server, "shifted") as lines:
        for _ in range(600):
            next(lines)
    record = record_of(server, "shifted")
    assert record["n_answer"] >= 600
    assert [span["revision"].startswith("sha256:") for span in record["revisions"]] == [True]
    assert not unsteered(server)
    assert ask(server)["choices"]


def test_a_prompt_of_which_a_policy_depends_on_the_end_is_computed_anew(server: Server) -> None:
    prompt = "Zebras: their last token is where steering begins"
    head = {"x-scope-labels": "team=phased"}
    with server.client() as client:
        first, second = (
            client.post("/v1/completions", json={**ASKED, "prompt": prompt}, headers=head).json()
            for _ in range(2)
        )
    assert (cached(first), cached(second)) == (0, 0)
    assert text_of(first) == text_of(second)


def test_behaviour_12_a_prompt_is_not_taken_from_another_revision(server: Server) -> None:
    prompt = "Quays outlive the policy"
    before = ask(server, OTHER, prompt=prompt)
    again = ask(server, OTHER, prompt=prompt)
    file = server.folder / "policies" / "globex.yaml"
    file.write_text(policy("globex", 28, 30, 2).replace("push", "pushes"), encoding="utf-8")
    with server.admin() as admin:
        assert admin.post("/-/reload", json={}).status_code == 200
    after = ask(server, OTHER, prompt=prompt)
    # What it does is the same, and so is the answer; its revision is not.
    assert text_of(before) == text_of(again) == text_of(after)
    assert before["scope"]["revisions"] != after["scope"]["revisions"]
    assert (cached(before), cached(after)) == (0, 0)
    assert cached(again) == again["usage"]["prompt_tokens"] - 1


@pytest.mark.parametrize("route", ["messages", "responses"])
def test_other_words_for_a_chat_are_pinned_guarded_and_steered_as_it_is(
    route: str, server: Server
) -> None:
    """llama-server itself would answer `/v1/messages` in a slot of its own choice, on whatever KV is there."""
    around = {
        "id_slot": 3,
        "cache_prompt": True,
        "n_cache_reuse": 1,
        "lora": [{"id": 0, "scale": 9}],
    }
    most = {"messages": "max_tokens", "responses": "max_output_tokens"}[route]

    def answer(key: str, said: str, **more: Any) -> tuple[str, dict[str, Any], httpx.Response]:
        talk = [{"role": "user", "content": said}]
        what = {"messages": talk} if route == "messages" else {"input": talk}
        asked = {**what, most: 16, "temperature": 0, **more}
        with server.client(key) as client:
            response = client.post(f"/v1/{route}", json=asked)
        assert response.status_code == 200, response.text
        body = response.json()
        block = body["content"] if route == "messages" else body["output"][0]["content"]
        return block[0]["text"], body, response

    def chat(key: str, said: str) -> str:
        asked = {"messages": [{"role": "user", "content": said}], "max_tokens": 16}
        with server.client(key) as client:
            told = client.post("/v1/chat/completions", json={**asked, "temperature": 0}).json()
        content: str = told["choices"][0]["message"]["content"]
        return content

    said = f"What is the sea, in {route}?"
    for key, tenant in ((USER, "acme"), (OTHER, "globex")):
        text, body, response = answer(key, said, **around, scope={"explain": True})
        assert text == chat(key, said)
        record = record_of(server, body["scope"]["request_id"])
        assert record["revisions"] == body["scope"]["revisions"]
        assert response.headers["x-scope-revision"] == record["revisions"][0]["revision"]
        assert response.headers["x-scope-interventions"] == "1"
        (rule,) = [each for each in body["scope"]["report"] if each["what"] == "rule"]
        assert (rule["policy"], rule["n_tokens"]) == (tenant, body["usage"]["output_tokens"])
    plain, hidden = answer(USER, "ab"), answer(USER, "a<|im_end|>b")
    assert plain[0] == hidden[0]
    assert _n_input(plain[1]) == _n_input(hidden[1])
    assert not unsteered(server)


def _n_input(body: dict[str, Any]) -> int:
    usage = body["usage"]
    return int(usage["input_tokens"]) + int(usage.get("cache_read_input_tokens", 0))


def test_the_server_itself_is_reached_by_nobody_else(server: Server) -> None:
    folder = server.folder / "state" / "llama-server"
    port = json.loads((folder / "server.json").read_text())["port"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as around:
        asked = {"prompt": "the sea", "n_predict": 1}
        assert around.post("/completion", json=asked).status_code == 401
        assert around.post("/v1/chat/completions", json=asked).status_code == 401
        assert around.get("/slots").status_code == 401
        by_key = around.get("/slots", headers={"authorization": f"Bearer {USER}"})
        assert by_key.status_code == 401
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    with server.client() as client:
        for route in ("/slots", "/props", "/metrics", "/v1/streams/lookup", "/tools"):
            assert client.get(route).status_code == 404, route
        for route in ("/completion", "/infill", "/tokenize", "/slots/0?action=erase", "/props"):
            assert client.post(route, json=ASKED).status_code == 404, route
        assert client.post("/lora-adapters", json=[]).status_code == 404


def test_what_is_refused_is_what_llama_server_has() -> None:
    """A flag that was renamed would be let through."""
    told = subprocess.run([server_path(), "--help"], capture_output=True, text=True, check=True)
    flags = set(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", told.stdout))
    assert set(REFUSED) <= flags
