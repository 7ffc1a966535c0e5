"""Requests that nobody thought of, made from the server's own OpenAPI: whatever comes, no fault of the server."""

from __future__ import annotations

import httpx
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from scope_runtime.serve.app import routes
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import KeyRing
from scope_runtime.serve.options import ServeOptions
from tests.serve.conftest import Server

# The routes' description is the same in every process, so that the cases are known before one runs.
schema = schemathesis.openapi.from_dict(
    routes(Gateway(ServeOptions(), "tiny", KeyRing(None))).openapi()
)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_fault_of_the_server(case: schemathesis.Case, server: Server) -> None:
    response = case.call(
        base_url=server.base_url.removesuffix("/v1"),
        headers={"authorization": f"Bearer {server.key}"},
        timeout=60,
    )
    case.validate_response(response, checks=[not_a_server_error])
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}


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
        "/v1/embeddings",
    }
