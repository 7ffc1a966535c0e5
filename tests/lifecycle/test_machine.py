"""Behaviours 9, 10, 16, 17 and 21 in any order: what runs is the last good revision, and status and metrics agree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from scope_runtime.lifecycle.build import Bench
from scope_runtime.lifecycle.compiler import Compiler
from scope_runtime.lifecycle.types import Builder
from scope_runtime.llama import library
from scope_runtime.types import ModelShape
from tests.support.life_machine import LifeMachine

library.load()
N_RUNS = int(os.environ.get("SCOPE_LIFE_RUNS", "20"))
"""``scripts/long-tests`` asks for thousands."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[LifeMachine]:
    from tests.support.random_model import SHAPES
    from tests.support.random_pack import make_random_pack

    shape, folder = SHAPES["qwen3"], tmp_path_factory.mktemp("site")
    other = tmp_path_factory.mktemp("other")
    make_random_pack(shape, folder)
    make_random_pack(shape, other, seed=9)
    shutil.copy(other / "pack.gguf", folder / "other.gguf")

    class Machine(LifeMachine):
        site: Path = folder
        bench = Bench(ModelShape(shape.architecture, shape.n_layer, shape.n_embd))

    return Machine


def run(machine: type[LifeMachine], n_runs: int, n_steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=n_runs,
            stateful_step_count=n_steps,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_runs_is_the_last_good_revision(machine: type[LifeMachine]) -> None:
    run(machine, N_RUNS, 12)


def test_what_runs_is_the_last_good_revision_with_a_compiler_of_its_own(
    machine: type[LifeMachine],
) -> None:
    class WithCompiler(machine):  # type: ignore[valid-type, misc]
        @staticmethod
        def builder(bench: Bench) -> Builder:
            return Compiler(bench, nice=0)

    run(WithCompiler, 2, 6)
