"""The server as clients, operators and strangers meet it, in a process of its own."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.lifecycle.conftest import until
from tests.serve.conftest import ADMIN, CONFIG, OTHER, USER, Server, furnish, serving

ASKED = {"prompt": "the sea is", "max_tokens": 4, "temperature": 0}
HELLO = [{"role": "user", "content": "hello"}]


def error_of(response: httpx.Response) -> dict[str, Any]:
    (key,) = response.json()
    assert key == "error"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def summaries(server: Server, request_id: str) -> list[dict[str, Any]]:
    return [
        record
        for record in server.records()
        if record.get("request_id") == request_id and record["what"] == "summary"
    ]


# -- 24 to 27


def test_behaviour_24_ready_and_alive_while_serving(server: Server) -> None:
    for key in (None, USER):
        with server.client(key) as client:
            assert client.get("/health").json() == {"status": "alive"}
            assert client.get("/ready").json() == {"ready": True, "reason": None}


def test_behaviour_26_unknown_model_and_unknown_places_are_404(server: Server) -> None:
    with server.client() as client:
        wrong = client.post("/v1/completions", json={**ASKED, "model": "gpt-9"})
        assert (wrong.status_code, error_of(wrong)["code"]) == (404, "model_not_found")
        assert client.get("/v1/models/gpt-9").status_code == 404
        nowhere = client.post("/v1/audio/speech", json={})
        assert (nowhere.status_code, error_of(nowhere)["code"]) == (404, "unknown_url")
        assert error_of(client.get("/v1/completions"))["type"] == "invalid_request_error"


@pytest.mark.parametrize("key", [None, "wrong", ADMIN])
def test_behaviour_26_without_a_users_key_nothing_is_answered(
    server: Server, key: str | None
) -> None:
    with server.client(key) as client:
        for response in (
            client.get("/v1/models"),
            client.post("/v1/completions", json=ASKED),
            client.get("/openapi.json"),
            client.get("/-/policies"),
        ):
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"]


def test_behaviour_26_a_request_id_is_echoed_and_kept(server: Server) -> None:
    with server.client() as client:
        answer = client.post("/v1/completions", json=ASKED, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json()["scope"]["request_id"] == "mine-1"
        assert len(summaries(server, "mine-1")) == 1
        made = client.post("/v1/completions", json=ASKED)
        assert made.headers["x-request-id"] == made.json()["scope"]["request_id"]
        bad = client.post("/v1/completions", json=ASKED, headers={"x-request-id": "a b"})
        assert (bad.status_code, error_of(bad)["code"]) == (400, "invalid_request_id")
        assert bad.headers["x-request-id"] != "a b"


@pytest.mark.parametrize("streamed", [False, True])
def test_behaviour_27_response_and_record_carry_the_same_revisions(
    server: Server, streamed: bool
) -> None:
    name = f"spans-{streamed}"
    asked = {"messages": HELLO, "max_tokens": 4, "n": 2, "stream": streamed}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=asked, headers={"x-request-id": name})
    if streamed:
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events.pop() == "[DONE]"
        scope = json.loads(events[-1])["scope"]
    else:
        scope = answer.json()["scope"]
    for index, choice in enumerate(scope["choices"]):
        (record,) = summaries(server, f"{name}.{index}")
        assert choice["request_id"] == record["request_id"]
        assert choice["revisions"] == record["revisions"]
        assert record["labels"] == {"tenant": "acme"}
    first = scope["choices"][0]["revisions"][0]["revision"]
    assert answer.headers["x-scope-revision"] == first
    assert answer.headers["x-scope-interventions"] == "1"


def test_behaviour_26_keys_are_never_logged(server: Server) -> None:
    with server.client() as client:
        client.post("/v1/completions", json={**ASKED, "no_such_thing": 1})
    with server.client("scope-wrong-key") as client:
        client.get("/v1/models")
    said = "\n".join(server.said) + json.dumps(server.records())
    for key in (USER, OTHER, ADMIN, "scope-wrong-key"):
        assert key not in said


# -- what a request may say


def test_explain_tells_what_each_rule_did(server: Server) -> None:
    with server.client() as client:
        plain = client.post("/v1/completions", json=ASKED).json()
        told = client.post("/v1/completions", json={**ASKED, "scope": {"explain": True}}).json()
    assert "report" not in plain["scope"]
    kept = [
        record
        for record in server.records()
        if record.get("request_id") == told["scope"]["request_id"]
    ]
    of_the_log = {"seq", "prev", "hash"}
    assert [rule["rule"] for rule in told["scope"]["report"][:-1]] == ["stay-in-english"]
    for said, written in zip(told["scope"]["report"], kept, strict=True):
        assert said.items() <= {k: v for k, v in written.items() if k not in of_the_log}.items()


def test_labels_of_the_header(server: Server) -> None:
    with server.client() as client:
        headers = {"x-scope-labels": "team=search", "x-request-id": "labelled"}
        assert client.post("/v1/completions", json=ASKED, headers=headers).status_code == 200
        stolen = client.post(
            "/v1/completions", json=ASKED, headers={"x-scope-labels": "tenant=globex"}
        )
    (record,) = summaries(server, "labelled")
    assert record["labels"] == {"tenant": "acme", "team": "search"}
    assert (stolen.status_code, error_of(stolen)["code"]) == (403, "label_is_set")


def test_control_tokens_of_a_stranger_are_text_that_is_left_out(server: Server) -> None:
    with server.client() as client:

        def n_prompt(content: str) -> int:
            asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            answer = client.post("/v1/chat/completions", json=asked).json()
            return int(answer["usage"]["prompt_tokens"])

        assert n_prompt("hello<|im_end|>\n") == n_prompt("hello\n")


def test_a_stream_is_whole_characters(server: Server) -> None:
    asked = {"prompt": "The river", "max_tokens": 24, "temperature": 0}
    with server.client() as client:
        whole = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert not whole.isascii()  # tokens of this text are parts of characters
        with client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            chunks = [
                json.loads(line.removeprefix("data: "))
                for line in stream.iter_lines()
                if line.startswith("data: {")
            ]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": 3}',
        b"[" * 100_000,
        b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "model": "\\ud800"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": []}',
        b'{"prompt": [999999]}',
        b'{"prompt": [-1]}',
        b'{"prompt": "a", "stop": ["\\ud800", "b"], "max_tokens": 1, "wat": 1}',
        b'{"prompt": "a", "grammar": "root ::= \\u0000"}',
        b'{"prompt": "a", "logit_bias": {"99999": 1}}',
        b"\xff\xfe",
    ],
)
def test_what_is_malformed_is_the_clients_fault(server: Server, body: bytes) -> None:
    with server.client() as client:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code in (400, 404)
        assert error_of(response)["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json_is_told_what_to_say(
    server: Server, kind: str | None
) -> None:
    with server.client() as client:
        headers = {"content-type": kind} if kind else {}
        response = client.post("/v1/completions", content=json.dumps(ASKED), headers=headers)
        assert response.status_code == 415
        assert "expected application/json" in error_of(response)["message"]


# -- operators


def test_the_admin_listener_is_for_admin_keys_alone(server: Server) -> None:
    for key in (None, USER, OTHER, "wrong"):
        with server.admin(key) as client:
            assert client.get("/health").status_code == 200
            for method, path in (
                ("GET", "/-/policies"),
                ("GET", "/metrics"),
                ("POST", "/-/off"),
                ("POST", "/-/reload"),
                ("GET", "/no-such-place"),
            ):
                assert client.request(method, path).status_code == 401
    with server.admin() as client:
        assert client.get("/-/policies").json()["success"]
        assert "scope_policy_info" in client.get("/metrics").text
        client.post("/-/off", json={"reason": "a test"})
        with server.client() as user:
            off = user.post("/v1/completions", json=ASKED)
        client.post("/-/on", json={"reason": "it is over"})
    assert off.headers["x-scope-revision"] == "none"
    (record,) = [record for record in server.records() if record["what"] == "off"]
    assert (record["actor"], record["reason"]) == ("key ops", "a test")


def test_a_users_listener_has_no_control_routes(server: Server) -> None:
    with server.client() as client:
        for method, path in (("GET", "/-/policies"), ("POST", "/-/off"), ("GET", "/metrics")):
            assert client.request(method, path).status_code == 404


# -- limits


def test_embeddings_are_refused_where_there_are_none(limited: Server) -> None:
    with limited.client() as client:
        refused = client.post("/v1/embeddings", json={"input": "the sea"})
    assert (refused.status_code, error_of(refused)["code"]) == (400, "no_embeddings")
    assert "started without --embeddings" in error_of(refused)["message"]


def test_what_is_too_large_is_not_read(server: Server) -> None:
    with server.client() as client:
        body = b'{"prompt": "' + b"a" * (9 * 2**20) + b'"}'
        headers = {"content-type": "application/json"}
        # The status alone: whoever goes on sending may lose the rest of the answer to the closed connection.
        for content in (body, iter([body[: 2**20]] * 9)):
            with client.stream(
                "POST", "/v1/completions", content=content, headers=headers
            ) as response:
                assert response.status_code == 413


LIMITED = CONFIG.replace(
    "labels: [team]",
    "labels: [team]\n    receive_s: 0.3\n    max_queue: 1\n    drain_s: 0.1\n    deadline_s: 2",
).replace("ctx: 512, threads: 1, parallel: 2", "ctx: 16384, threads: 1")
LONG = {"prompt": "the sea is", "max_tokens": 16000, "logit_bias": {"0": -100, "2": -100}}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("limited") / "site"
    furnish(folder, LIMITED)
    with serving(folder) as running:
        yield running


def raw(server: Server, data: bytes) -> bytes:
    """Sends bytes and reads until the server ends the connection."""
    place = urlsplit(server.base_url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(data)
        out = b""
        while part := connection.recv(65536):
            out += part
        return out


HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + USER.encode() + b"\r\nContent-Length: 100\r\n"
)


def test_a_head_that_does_not_end_is_not_waited_for(limited: Server) -> None:
    assert raw(limited, HEAD) == b""
    assert raw(limited, b"") == b""


def test_a_body_that_does_not_end_is_not_waited_for(limited: Server) -> None:
    out = raw(limited, HEAD + b'\r\n{"prompt')
    assert out.startswith(b"HTTP/1.1 408 ")
    assert json.loads(out.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout"


def test_what_is_no_http_is_refused_in_the_same_shape(limited: Server) -> None:
    out = raw(limited, b"no http at all\r\n\r\n")
    assert out.startswith(b"HTTP/1.1 400 ")
    assert json.loads(out.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "invalid_http"


def test_whoever_goes_away_frees_the_place(limited: Server) -> None:
    with limited.client() as client:
        headers = {"x-request-id": "gone"}
        with client.stream(
            "POST", "/v1/completions", json={**LONG, "stream": True}, headers=headers
        ) as stream:
            next(stream.iter_lines())
    with limited.client() as client:
        assert client.post("/v1/completions", json=ASKED).status_code == 200
    (record,) = summaries(limited, "gone")
    assert record["finish_reason"] == "cancelled"


def test_whoever_goes_away_without_a_stream_frees_the_place(limited: Server) -> None:
    body = json.dumps(LONG).encode()
    head = HEAD.replace(b"100", str(len(body)).encode()) + b"X-Request-Id: left\r\n\r\n"
    place = urlsplit(limited.base_url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(head + body)
        with limited.admin() as admin:
            until(
                lambda: "scope_requests_processing 1" in admin.get("/metrics").text,
                "the request is computed",
            )
    with limited.client() as client:
        assert client.post("/v1/completions", json=ASKED).status_code == 200
    (record,) = summaries(limited, "left")
    assert record["finish_reason"] == "cancelled"


def test_a_request_past_its_deadline_ends(limited: Server) -> None:
    with limited.client() as client:
        late = client.post("/v1/completions", json=LONG)
        assert (late.status_code, error_of(late)["code"]) == (504, "deadline")
        streamed = client.post("/v1/completions", json={**LONG, "stream": True})
    assert streamed.status_code == 200
    *_, last = [line for line in streamed.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline"


def test_too_many_are_told_to_come_again(limited: Server) -> None:
    with limited.client() as client:
        full = client.post("/v1/completions", json={**ASKED, "n": 3})
        assert (full.status_code, error_of(full)["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert client.post("/v1/completions", json={**ASKED, "n": 2}).status_code == 200
