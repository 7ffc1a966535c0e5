"""The conformance script, against the embedded engine."""

from __future__ import annotations

import pytest

from tests.serve.conformance import CHECKS, Endpoint
from tests.serve.conftest import Server


@pytest.mark.parametrize("name", CHECKS)
def test_a_client_gets_what_it_expects(server: Server, name: str) -> None:
    CHECKS[name](Endpoint(server.base_url, server.model, server.key))
