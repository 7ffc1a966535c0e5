"""A short run of ``scripts/fuzz_policies``: mutated policies are refused in words or taken up whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scope_runtime.errors import PolicyError
from scope_runtime.llama import library
from scope_runtime.policy.model import Policy
from scope_runtime.types import ModelShape
from tests.conftest import ROOT
from tests.support.policy_fuzz import EVERYTHING, Live, fuzz, seeds
from tests.support.policy_mutations import mutated

library.load()
N_DOCUMENTS = 300


@pytest.fixture
def live(tmp_path: Path) -> Live:
    from tests.support.random_model import SHAPES
    from tests.support.random_pack import make_random_pack

    shape = SHAPES["qwen3"]
    make_random_pack(shape, tmp_path)
    return Live(tmp_path, ModelShape(shape.architecture, shape.n_layer, shape.n_embd))


def test_behaviours_1_and_9_mutated_policies_are_refused_or_taken_up_whole(live: Live) -> None:
    own = seeds()
    result = fuzz(live, ((n, mutated(own, 1, n)) for n in range(N_DOCUMENTS)))
    assert result.wrong == []
    assert sum(result.outcomes.values()) == N_DOCUMENTS
    assert result.outcomes["taken up"] > N_DOCUMENTS // 50


def test_the_seeds_are_what_they_should_be(live: Live) -> None:
    """Else the run would only prove that nonsense is refused."""
    assert live.feed(EVERYTHING.encode()) == "taken up"
    came = [live.feed(document) for document in dict.fromkeys(seeds())]
    assert came.count("taken up") >= 13


def test_what_is_half_applied_is_found(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lifecycle that swapped before it refused would not pass."""

    def swap_then_refuse(policies: tuple[Policy, ...]) -> None:
        live.target.take_up(live.lifecycle.nothing)
        raise PolicyError("refused", location=policies[0].name_at)

    monkeypatch.setattr(live.lifecycle._memory, "check_generations", swap_then_refuse)
    result = fuzz(live, [(0, EVERYTHING.encode())])
    assert "refused, and yet another program runs" in result.wrong[0]


def test_the_script_gives_the_same_document_for_the_same_number() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "fuzz_policies"),
        "--seed",
        "3",
        "--show",
        "77",
    ]
    one, other = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))
    assert one == other == mutated(seeds(), 3, 77)
