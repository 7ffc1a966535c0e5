"""What the exactness tests share: random models, packs, runtimes, and a record of every figure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.llama import library
from scope_runtime.runtime import Runtime
from tests.support.interventions import Case, Point, make_point, prompt
from tests.support.numerics import Numerics
from tests.support.plain_llama import Logits
from tests.support.policy_files import write_policy
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.random_pack import RandomPack, make_random_pack
from tests.support.torch_reference import EMBEDDING, run

# Before anything imports llama_cpp: the hook's symbols must come first in this process.
library.load()

BOUND = 2e-5
"""Largest difference of two logits that counts as equal, in units of the logits' range."""

BOUND_AS_IT_COMES = 1e-3
"""The same where llama.cpp's own F16 cache and attention stand between hook and reference."""

Equal = Callable[..., None]

POINTS = ("embedding", "first", "middle", "last")

_figures: dict[tuple[str, float], list[float]] = {}


@dataclass(frozen=True, eq=False)
class Twin:
    """A random model in llama.cpp and in PyTorch, with a pack for it. Prompts are `prompt`'s."""

    model: RandomModel
    pack: RandomPack

    def layer(self, point: str) -> int:
        n_layer = self.model.shape.n_layer
        where = {"embedding": EMBEDDING, "first": 0, "middle": n_layer // 2, "last": n_layer - 1}
        return where[point]

    def tokens(self, n_tokens: int = 40, seed: int = 0) -> list[int]:
        return prompt(self.model.shape.n_vocab, n_tokens, seed)

    @functools.cache  # noqa: B019 - twins live as long as the tests
    def point(self, layer: int) -> Point:
        return make_point(self.model.torch_model, self.pack, layer, self.tokens())

    @functools.cache  # noqa: B019
    def unsteered(self) -> Logits:
        return run(self.model.torch_model, self.tokens()).logits

    def policy(self, case: Case, name: str = "policy", mode: str = "enforce") -> Path:
        path = self.pack.folder / f"{name}.yaml"
        return write_policy(path, self.pack, case.rules, dose_max=case.dose_max, mode=mode)

    def runtime(
        self,
        policy: Path | None = None,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
    ) -> Runtime:
        return Runtime(
            self.model.path,
            policy,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=1,
            use_extra_bufts=False,
        )


@pytest.fixture(scope="session")
def numerics() -> Numerics:
    return Numerics()


@pytest.fixture(scope="module", autouse=True)
def in_f32(numerics: Numerics) -> Iterator[None]:
    """All in F32, unless a test asks for llama.cpp as it comes; nothing of it lasts into other tests."""
    with numerics.in_force():
        yield


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    """One of each architecture, by name."""
    out = {}
    for name, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(name)
        out[name] = Twin(make_random_model(name, folder), make_random_pack(shape, folder))
    return out


@pytest.fixture(scope="session")
def twin(twins: dict[str, Twin]) -> Twin:
    """The one that stands for all where the architecture does not matter."""
    return twins["qwen3"]


@pytest.fixture(scope="session")
def runtimes(twins: dict[str, Twin], numerics: Numerics) -> Iterator[dict[str, Runtime]]:
    """A runtime per architecture; tests give each their own policy."""
    with numerics.in_force():
        out = {name: twin.runtime() for name, twin in twins.items()}
    yield out
    for runtime in out.values():
        runtime.close()


@pytest.fixture(scope="session")
def default_runtime(twin: Twin, numerics: Numerics) -> Iterator[Runtime]:
    """A runtime on llama.cpp as it comes."""
    with numerics.as_it_comes():
        runtime = twin.runtime()
    with runtime:
        yield runtime


@pytest.fixture
def equal() -> Equal:
    """Asserts that logits equal the reference's to `BOUND`, and keeps the figure for the summary."""

    def check(found: Logits, wanted: Logits, what: str, bound: float = BOUND) -> None:
        figure = difference(found, wanted)
        assert figure <= bound, f"{what}: {figure:.2e} of the logits' range"
        _figures.setdefault((what, bound), []).append(figure)

    return check


def difference(found: Logits, wanted: Logits) -> float:
    """Largest absolute difference, in units of the wanted logits' range."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures: a test that only says it passed does not say by how much."""
    if not _figures:
        return
    terminalreporter.section("exactness: max |difference| of logits, in units of their range")
    for (what, bound), figures in _figures.items():
        terminalreporter.line(
            f"{what:32} {len(figures):4} runs  worst {max(figures):.1e}  (bound {bound:.0e})"
        )
