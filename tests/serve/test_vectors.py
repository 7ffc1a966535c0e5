"""``/v1/embeddings``: in OpenAI's shape, under the request's policies, on record."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import openai
import pytest

from scope_runtime.audit.logged import logged_request
from scope_runtime.audit.segments import LogFiles
from scope_runtime.errors import AuditError
from tests.serve.conftest import OTHER, Server
from tests.serve.test_server import error_of, summaries

TEXTS = ["the sea is wide", "The river", "a small city"]


def ask(server: Server, key: str | None = None, **asked: object) -> httpx.Response:
    headers = {"x-request-id": str(asked.pop("name"))} if "name" in asked else {}
    with server.client(key or server.key) as client:
        return client.post("/v1/embeddings", json=asked, headers=headers)


def numbers(response: httpx.Response) -> np.ndarray:
    data = response.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    assert {each["object"] for each in data} == {"embedding"}
    return np.array([each["embedding"] for each in data])


def test_openais_client_gets_vectors(server: Server) -> None:
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        # Without a word on it the client asks for base64 and decodes it.
        coded = client.embeddings.create(model=server.model, input=TEXTS)
        plain = client.embeddings.create(model=server.model, input=TEXTS, encoding_format="float")
        one = client.embeddings.create(model=server.model, input=TEXTS[1])
        short = client.embeddings.create(model=server.model, input=TEXTS[1], dimensions=8)
    whole = np.array([each.embedding for each in plain.data])
    assert np.array_equal(np.array([each.embedding for each in coded.data], np.float32), whole)
    assert np.linalg.norm(whole, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert np.allclose(one.data[0].embedding, whole[1], atol=1e-6)
    first = whole[1, :8]
    assert np.allclose(short.data[0].embedding, first / np.linalg.norm(first), atol=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > one.usage.total_tokens


def test_token_ids_and_base64(server: Server) -> None:
    ids = [[5, 17, 33], [80, 41]]
    told = numbers(ask(server, input=ids))
    assert np.allclose(told[1], numbers(ask(server, input=ids[1]))[0], atol=1e-6)
    coded = ask(server, input=ids[1], encoding_format="base64").json()["data"][0]["embedding"]
    read = np.frombuffer(base64.b64decode(coded), "<f4")
    assert np.allclose(read, told[1], atol=1e-6)


def test_response_and_record_say_the_same(server: Server) -> None:
    said = ask(server, input=TEXTS[:2], name="vectors", scope={"explain": True})
    scope = said.json()["scope"]
    for index, told in enumerate(scope["choices"]):
        (record,) = summaries(server, f"vectors.{index}")
        assert told["request_id"] == record["request_id"]
        assert told["revisions"] == record["revisions"]
        assert record["task"] == "embedding"
        assert record["labels"] == {"tenant": "acme"}
        assert [rule["rule"] for rule in told["report"][:-1]] == ["stay-in-english"]
    assert said.headers["x-scope-revision"] == scope["revisions"][0]["revision"]
    assert said.headers["x-scope-interventions"] == "1"
    alone = ask(server, OTHER, input=TEXTS[0], name="alone").json()["scope"]
    assert alone["request_id"] == "alone"
    assert "report" not in alone


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"input": ""}, "invalid_value", "input[0]"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": "sea " * 600}, "invalid_value", "input[0]"),
        ({"input": [999_999]}, "invalid_value", "input[0]"),
        ({"input": []}, "invalid_value", None),
        ({"input": ["a"] * 2049}, "invalid_value", None),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": 4096}, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "a", "stream": True}, "unsupported_parameter", "stream"),
        ({"input": "a", "model": "gpt-9"}, "model_not_found", "model"),
        ({}, "invalid_value", "input"),
    ],
)
def test_what_cannot_be_is_refused(
    server: Server, asked: dict[str, object], code: str, param: str | None
) -> None:
    refused = ask(server, **asked)
    assert refused.status_code == (404 if code == "model_not_found" else 400)
    error = error_of(refused)
    assert error["code"] == code
    assert param is None or error["param"] == param


def test_a_refused_request_leaves_none_of_its_texts_on_record(server: Server) -> None:
    assert ask(server, input=["a text", ""], name="half").status_code == 400
    assert summaries(server, "half.0") == []
    assert ask(server, input="a", user="somebody").status_code == 200


def test_a_logged_embedding_is_no_answer_to_replay(server: Server) -> None:
    assert ask(server, input="a text", name="no-answer").status_code == 200
    log = LogFiles(server.folder / "audit" / "events.jsonl")
    with pytest.raises(AuditError, match="is of an embedding: it has no answer"):
        logged_request(log, request_id="no-answer")
