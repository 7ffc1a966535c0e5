"""Requests that nobody thought of, made from the server's own OpenAPI: whatever comes, it answers what that says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from scope_runtime.serve.app import routes
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import KeyRing
from scope_runtime.serve.options import ServeOptions
from tests.serve.conftest import Server
from tests.serve.over_server import attached, furnished

# The routes' description is the same in every process, so that the cases are known before one runs.
schema = schemathesis.openapi.from_dict(
    routes(Gateway(ServeOptions(), "tiny", KeyRing(None))).openapi()
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MOST = {"n": 2, "max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4}


def cheap(case: schemathesis.Case) -> None:
    """Sound requests for thousands of tokens cost minutes and say nothing new: their bounds have tests of their own."""
    body = case.body
    if not isinstance(body, dict):
        return
    if case.path.endswith("completions"):
        body.setdefault("max_tokens", MOST["max_tokens"])
    if case.path.endswith("responses"):
        body.setdefault("max_output_tokens", MOST["max_output_tokens"])
    for name, most in MOST.items():
        if type(body.get(name)) is int:
            body[name] = min(body[name], most)
    for name in ("prompt", "input", "messages"):
        if isinstance(body.get(name), list):
            body[name] = body[name][:3]


@pytest.fixture(scope="module")
def over_llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with attached(furnished(tmp_path_factory.mktemp("fuzzed") / "site")) as running:
        yield running


@schema.parametrize()
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_server_describes(
    case: schemathesis.Case, server: Server
) -> None:
    check(case, server)


@schema.parametrize()
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
def test_every_answer_over_a_llama_server_is_one_that_the_server_describes(
    case: schemathesis.Case, over_llama_server: Server
) -> None:
    check(case, over_llama_server)


def check(case: schemathesis.Case, server: Server) -> None:
    cheap(case)
    response = case.call(
        base_url=server.base_url.removesuffix("/v1"),
        headers={"authorization": f"Bearer {server.key}"},
        timeout=60,
    )
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        body = response.json()
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert set(body) - {"error"} == ({"type"} if case.path == "/v1/messages" else set())


def test_the_server_describes_itself(server: Server) -> None:
    with server.client() as client:
        told: httpx.Response = client.get("/openapi.json")
    assert set(told.json()["paths"]) == {
        "/health",
        "/ready",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    }
