"""Random models, packs and runtimes that the exactness tests share."""

from __future__ import annotations

import pytest

from scope_runtime.llama import library
from tests.support.random_model import SHAPES, RandomModel, make_random_model
from tests.support.random_pack import RandomPack, make_random_pack

# Before anything imports llama_cpp: the hook's symbols must come first in this process.
library.load()


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RandomModel]:
    """One of each architecture, by name."""
    return {name: make_random_model(name, tmp_path_factory.mktemp(name)) for name in SHAPES}


@pytest.fixture(scope="session")
def random_packs(random_models: dict[str, RandomModel]) -> dict[str, RandomPack]:
    """A random SAE for each of them, beside the model's file."""
    return {
        name: make_random_pack(model.shape, model.path.parent)
        for name, model in random_models.items()
    }
