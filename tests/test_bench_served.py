"""``scope bench --url``: load on a running endpoint, with a policy and without, against the endpoint's own records."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from scope_runtime.bench import AGAIN, ARMS, OFF, ON
from scope_runtime.bench_served import Load, Way, load
from scope_runtime.errors import UsageError
from scope_runtime.paired import pooled_ratio
from tests.conftest import Scope
from tests.serve.conftest import OTHER, USER, Server, serving
from tests.serve.soak import furnished

SIZE = ("--clients", 2, "--requests", 16, "--rounds", 2, "--prompt-tokens", 4, "--answer-tokens", 6)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A policy for the team search, and one for the tenant globex; none for acme's other requests."""
    folder = furnished(tmp_path_factory.mktemp("load") / "site", 2)
    (folder / "policies" / "of-acme.yaml").unlink()
    (folder / "acme.key").write_text(f"{USER}\n")
    (folder / "globex.key").write_text(OTHER)
    with serving(folder) as running:
        yield running


def ask(served: Server, key: str, *more: object) -> tuple[object, ...]:
    return ("bench", "--url", served.base_url, "--api-key-file", served.folder / key, *SIZE, *more)


def test_the_arms_are_what_the_endpoint_has_on_record(served: Server, scope: Scope) -> None:
    before = len(served.records())
    done = scope(*ask(served, "acme.key", "--labels", "team=search", "--json"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["load"]["n_clients"] == 2
    arms = {arm["name"]: arm for arm in said["arms"]}
    assert list(arms) == list(ARMS)
    assert [arms[name]["interventions"] for name in ARMS] == [[0], [0], [1]]
    summaries = [r for r in served.records()[before:] if r["what"] == "summary"]
    steered = [r for r in summaries if r["labels"].get("team") == "search"]
    # The round that warms is on record, too, and counts for nothing.
    assert len(steered) == 16 + 2
    assert len(summaries) - len(steered) == 2 * (16 + 2)
    for name in ARMS:
        arm = arms[name]
        assert (arm["n_requests"], arm["n_failed"], arm["failure"]) == (16, 0, None)
        assert arm["tokens_per_s"] > 0
        assert 0 < arm["between_ms"]["p50"] <= arm["between_ms"]["p99"]
        assert 0 < arm["first_token_ms"]["p50"] <= arm["first_token_ms"]["p99"]
    assert arms[ON]["n_tokens"] <= sum(r["n_answer"] for r in steered)
    assert arms[OFF]["throughput_ratio"] is None
    for name in (AGAIN, ON):
        ratio = arms[name]["throughput_ratio"]
        assert ratio["lower"] <= ratio["median"] <= ratio["upper"]
        assert arms[name]["between_p99_ratio"]["n_blocks"] == 2


def test_one_arm_where_there_is_nothing_to_compare_with(served: Server, scope: Scope) -> None:
    done = scope(*ask(served, "globex.key"))
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split()[:3] == ["arm", "rules", "tok/s"]
    assert row.split()[:2] == ["load", "1"]


def test_what_would_compare_nothing_is_refused(served: Server, scope: Scope) -> None:
    def refused(*arguments: object) -> str:
        done = scope(*arguments)
        assert done.returncode == 2, done.stdout
        return " ".join(done.stderr.split())

    unsteered = refused(*ask(served, "acme.key", "--labels", "team=travel"))
    assert "no policy changes the answers of the arm 'on'" in unsteered
    steered = refused(*ask(served, "globex.key", "--labels", "team=search"))
    assert "a policy changes the answers of the arm 'off'" in steered
    wrong = served.folder / "wrong.key"
    wrong.write_text("scope-nobodys\n")
    assert "does not answer the arm 'load'; found 401" in refused(*ask(served, "wrong.key"))
    assert "the key cannot be read" in refused(*ask(served, "none.key"))
    nowhere = ("bench", "--url", "http://127.0.0.1:9/v1", *SIZE)
    assert "does not answer the arm 'load'" in refused(*nowhere)
    assert "Give --model or --url" in refused("bench")
    assert "Give --model or --url" in refused("bench", "-m", "m.gguf", *nowhere[1:])
    assert "an endpoint has its own policies" in refused(*nowhere, "-P", "p.yaml")
    assert "keys are for an endpoint" in refused(
        "bench", "-m", "m.gguf", "-P", "p.yaml", "--api-key-file", "k"
    )
    assert "no policy is given" in refused("bench", "-m", "m.gguf")


def test_who_is_refused_at_once_does_not_take_the_others_requests(served: Server) -> None:
    known, unknown = ({"authorization": f"Bearer {key}"} for key in (OTHER, "scope-nobodys"))
    size = Load(n_clients=2, n_requests=16, n_prompt=4, n_answer=6, n_rounds=2)
    (arm,) = load([Way("load", served.base_url, (known, unknown))], size)
    assert (arm.n_requests, arm.n_failed) == (16, 2)
    assert arm.failure is not None
    assert arm.failure.startswith("401")


def test_a_client_without_a_request_in_a_round_is_refused() -> None:
    with pytest.raises(UsageError, match="n_requests is too small; found 15; expected 16"):
        Load(n_clients=4, n_requests=15, n_rounds=4)


def test_a_pooled_ratio_is_of_all_that_the_rounds_hold() -> None:
    base = [[1.0, 2.0, 3.0], [5.0], [2.0, 2.0]]
    same = pooled_ratio(base, base, 99)
    assert (same.median, same.lower, same.upper, same.n_blocks) == (1.0, 1.0, 1.0, 3)
    twice = pooled_ratio([[2 * each for each in one] for one in base], base, 50)
    assert (twice.median, twice.lower, twice.upper) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="not measured"):
        pooled_ratio([[]], [[1.0]], 50)
