"""``scope serve --plane control-vector``: a llama-server without a hook, under one set of policies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scope_runtime.attached.vector_hook import BY_CONSTRUCTION
from scope_runtime.runtime import Runtime
from tests.conftest import Scope
from tests.lifecycle.conftest import until
from tests.serve.conftest import MODEL, OTHER, USER, Server, furnish, serving
from tests.serve.over_server import (
    ASKED,
    LONG,
    OPTIONS,
    STATE,
    ask,
    cached,
    record_of,
    runs,
    server_pid,
    text_of,
)
from tests.support.foreign_builds import CALLBACK, foreign_build
from tests.support.stock_server import server_path

BOUND = 1e-3
"""Largest difference of two log probabilities that counts as equal, in units of their range."""

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: push, generation: {generation}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: {feature}}}
    g: {{pack: packs/tiny-qwen3.gguf, layer: 2, id: 685}}
  rules:
    - {{name: push, amplify: f, alpha: 30}}
    - {{name: pull, amplify: g, alpha: -2{when}}}
"""
N_TOP = 20


def write(site: Path, feature: int = 767, generation: int = 1, when: str = "") -> None:
    text = POLICY.format(feature=feature, generation=generation, when=when)
    (site / "policies" / "push.yaml").write_text(text, encoding="utf-8")


@contextmanager
def steered(site: Path, *more: str, program: Path | None = None) -> Iterator[Server]:
    engine = ("--engine", "llama-server", "--llama-server", str(program or server_path()))
    plane = ("--plane", "control-vector")
    with serving(site, "--config", "scope.yaml", *engine, *plane, "--", *OPTIONS, *more) as running:
        yield running


def furnished(folder: Path) -> Path:
    config = STATE.replace("    labels: [team]\n", "    labels: [team]\n    drain_s: 1\n")
    furnish(folder, config.replace("  serve:\n", "  control: {socket: control.sock}\n  serve:\n"))
    (folder / "policies" / "english-only.yaml").unlink()
    write(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return furnished(tmp_path / "site")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only ask."""
    with steered(furnished(tmp_path_factory.mktemp("vector") / "site")) as running:
        yield running


def top_logprobs(answer: dict[str, Any]) -> dict[str, float]:
    """Of the likeliest first tokens."""
    found: dict[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return found


def embedded(*policies: Path) -> dict[str, float]:
    """The same of the embedded engine, whose hook adds to the residual."""
    with Runtime(MODEL, *policies, n_ctx=512, use_extra_bufts=False) as runtime:
        answer = runtime.generate(ASKED["prompt"], max_tokens=1, temperature=0, top_logprobs=N_TOP)
    return {each.data.decode(errors="replace"): each.logprob for each in answer.scores[0].top}


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest of what both list, in units of their range."""
    both = sorted(one.keys() & other.keys())
    assert len(both) >= N_TOP // 2
    a, b = (np.array([each[text] for text in both]) for each in (one, other))
    return float(np.abs(a - b).max() / np.ptp(b))


def test_answers_are_those_of_the_embedded_engine(server: Server) -> None:
    """It has the same policies in its hook; so have neighbours in a batch, and prompts that a slot has kept."""
    wanted, plain = embedded(server.folder / "policies"), embedded()
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(
            lambda key: ask(server, key, max_tokens=1, logprobs=N_TOP), [USER, OTHER] * 4
        )
        found = [top_logprobs(answer) for answer in answers]
    kept = ask(server, max_tokens=1, logprobs=N_TOP)
    assert cached(kept) > 0
    for each in [*found, top_logprobs(kept)]:
        assert difference(each, wanted) <= BOUND
        assert difference(each, plain) > 10 * BOUND


def test_records_and_status_say_how_the_effect_is_known(server: Server, scope: Scope) -> None:
    told = ask(server, scope={"explain": True})["scope"]
    with server.admin() as admin:
        status = admin.get("/-/policies").json()
    record = record_of(server, told["request_id"])
    shown = scope("status", "--control", server.folder / "control.sock").stdout
    (started,) = [each for each in server.records() if each["what"] == "server-started"]
    assert status["effect"] == record["effect"] == BY_CONSTRUCTION
    assert started["attach"] == [BY_CONSTRUCTION]
    assert f"\neffect    {BY_CONSTRUCTION}\n" in shown
    assert record["revisions"] == told["revisions"]
    assert told["revisions"] == [{"revision": status["revision"], "from_position": 0}]
    assert told["interventions"] == 2
    assert [each["what"] for each in told["report"]] == ["summary"]  # no rule was measured
    assert status["acknowledged"]


def test_another_policy_is_another_server(site: Path) -> None:
    """What runs ends at the deadline, what comes waits; a refused reload ends nothing."""
    with steered(site) as server, server.admin() as admin, server.client() as client:
        before, revision = text_of(ask(server)), admin.get("/-/policies").json()["revision"]
        pid = server_pid(server)
        write(site, generation=2, when=", when: {phase: prompt}")
        refused = admin.post("/-/reload", json={})
        assert refused.status_code == 422
        assert "push.yaml:11:7" in refused.json()["text"]
        assert "cannot carry when.phase of rule pull" in refused.json()["text"]
        assert runs(pid)
        assert ask(server)["scope"]["revisions"][0]["revision"] == revision

        with ThreadPoolExecutor(2) as threads:
            asked = {"json": LONG, "headers": {"x-request-id": "cut"}}
            with client.stream("POST", "/v1/completions", **asked) as stream:
                lines = stream.iter_lines()
                next(lines)
                write(site, 843, 2)
                reload = threads.submit(admin.post, "/-/reload", json={})
                until(lambda: client.get("/ready").status_code == 503, "it is not ready")
                waits = threads.submit(ask, server)
                *_, last = [line for line in lines if line]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_lost"
            assert reload.result().status_code == 200
        assert not runs(pid)
        assert server_pid(server, n=2) != pid
        new = admin.get("/-/policies").json()["revision"]
        (span,) = waits.result()["scope"]["revisions"]
        assert span == {"revision": new, "from_position": 0}
        assert cached(waits.result()) == 0
        assert text_of(waits.result()) != before
        assert [each["revision"] for each in record_of(server, "cut")["revisions"]] == [revision]
        swapped = [each for each in server.records() if each["what"] == "swapped"]
        assert [each["revision"] for each in swapped] == [revision, new]


def test_behaviour_21_off_ends_what_runs_and_nothing_is_steered_after_it(site: Path) -> None:
    with steered(site) as server, server.admin() as admin, server.client() as client:
        before, pid = text_of(ask(server)), server_pid(server)
        asked = {"json": LONG, "headers": {"x-request-id": "cut"}}
        with client.stream("POST", "/v1/completions", **asked) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert admin.post("/-/off", json={}).status_code == 200
            assert not runs(pid)
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_lost"
        off = ask(server)
        assert off["scope"]["revisions"] == [{"revision": "none", "from_position": 0}]
        assert off["scope"]["interventions"] == 0
        assert b"--control-vector" not in command_line(server_pid(server, n=2))
        assert admin.post("/-/on", json={}).status_code == 200
        assert text_of(ask(server)) == before != text_of(off)
        assert record_of(server, "cut")["finish_reason"] == "error"


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_killed_gateways_server_goes_on_under_the_same_policies_alone(site: Path) -> None:
    with steered(site) as server:
        pid, before = server_pid(server), text_of(ask(server))
        server.process.kill()
        server.process.wait()
    with steered(site) as server:
        assert server_pid(server, "adopted") == pid
        answer = ask(server)
        assert (text_of(answer), cached(answer)) == (before, 0)
        os.kill(pid, signal.SIGKILL)  # and one that ends by itself comes back under them, too
        pid = server_pid(server)
        assert text_of(ask(server)) == before
        server.process.kill()
        server.process.wait()
    write(site, 843, 2)
    with steered(site) as server:
        assert server.wait_for("the llama-server that was there is ended: ") == (
            "it was started under other policies"
        )
        assert text_of(ask(server)) != before
    assert not runs(pid)


def test_a_build_that_takes_no_hook_is_steered_so(site: Path, tmp_path: Path) -> None:
    program = foreign_build(tmp_path / "build", CALLBACK)
    engine = ("--engine", "llama-server", "--llama-server", str(program))
    with serving(site, "--config", "scope.yaml", *engine, "--", *OPTIONS, wait=False) as hooked:
        hooked.process.wait()
    (refused,) = [line for line in hooked.said if line.startswith("error: ")]
    assert "need no hook: --plane control-vector" in refused
    wanted = embedded(site / "policies")
    with steered(site, program=program) as server:
        found = top_logprobs(ask(server, max_tokens=1, logprobs=N_TOP))
    assert difference(found, wanted) <= BOUND


def test_policies_that_it_cannot_carry_are_refused_at_the_start(site: Path) -> None:
    write(site, when=", rollout: {percent: 5, by: tenant}")
    engine = ("--engine", "llama-server", "--llama-server", str(server_path()))
    more = ("--plane", "control-vector", "--", *OPTIONS)
    with serving(site, "--config", "scope.yaml", *engine, *more, wait=False) as server:
        assert server.process.wait() == 1
    (error,) = [line for line in server.said if line.startswith("error: ")]
    assert "push.yaml:11:7: llama.cpp's control vector cannot carry rollout of rule pull" in error


def test_the_plane_is_for_a_llama_server(site: Path, scope: Scope) -> None:
    refused = scope("serve", "-m", MODEL, "-P", site / "policies", "--plane", "control-vector")
    assert refused.returncode == 2
    assert "the embedded engine needs no other plane" in refused.stderr
