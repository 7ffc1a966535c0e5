"""Builds of llama-server that cannot be steered: refused in words before anybody is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.conftest import HANGS_S, serving
from tests.serve.over_server import OPTIONS, furnished, runs, server_pids
from tests.support.foreign_builds import BATCHES, CALLBACK, MEMORY, foreign_build


@pytest.mark.parametrize(
    ("hidden", "says"),
    [
        (CALLBACK, "llama.cpp's calls do not pass through the hook: the server is linked"),
        (BATCHES, "the hook did not recognise a known prompt in the server's batches"),
        (MEMORY, "the server changes its KV without the hook seeing it"),
    ],
    ids=["the graph", "the batches", "the KV"],
)
def test_a_build_of_which_the_hook_does_not_see_enough_is_refused(
    hidden: bytes, says: str, tmp_path: Path
) -> None:
    program = foreign_build(tmp_path / "build", hidden)
    site = furnished(tmp_path / "site")
    engine = ("--engine", "llama-server", "--llama-server", str(program))
    with serving(site, "--config", "scope.yaml", *engine, "--", *OPTIONS, wait=False) as server:
        assert server.process.wait(timeout=HANGS_S) == 1
    (error,) = [line for line in server.said if line.startswith("error: ")]
    assert error.startswith(f"error: {says}")
    assert not any(line.startswith("ready: ") for line in server.said)
    assert not [pid for pid in server_pids(program) if runs(pid)]
