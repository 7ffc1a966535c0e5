"""Where nothing may differ at all: no program, `off`, `audit`, and llama.cpp's own control vector."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.runtime import Runtime
from tests.exactness.conftest import POINTS, Twin
from tests.support.hooked_llama import hooked_llama, install
from tests.support.interventions import CASES, N_PROMPT, Case
from tests.support.numerics import Numerics
from tests.support.plain_llama import Column, PlainLlama
from tests.support.random_model import SHAPES
from tests.support.torch_reference import Rule

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("architecture", SHAPES)
def test_process_without_the_hook(
    architecture: str, twins: dict[str, Twin], numerics: Numerics, tmp_path: Path
) -> None:
    """The other process loads llama.cpp alone: no interposed symbol, no callback."""
    twin = twins[architecture]
    tokens = [str(token) for token in twin.tokens()]
    command = [sys.executable, "-m", "tests.support.plain_llama", str(twin.model.path)]
    subprocess.run(
        [*command, str(tmp_path / "logits.npy"), *tokens], cwd=ROOT, check=True, capture_output=True
    )
    with numerics.as_it_comes(), twin.runtime() as runtime:
        found = runtime.logits(twin.tokens())
    np.testing.assert_array_equal(found, np.load(tmp_path / "logits.npy"))


@pytest.mark.parametrize("mode", ["audit", "off"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("architecture", SHAPES)
def test_behaviour_19_modes_that_change_nothing(
    architecture: str,
    point: str,
    mode: str,
    twins: dict[str, Twin],
    runtimes: dict[str, Runtime],
) -> None:
    """Every rule of every case at once, except those that a limit would cut."""
    twin, runtime = twins[architecture], runtimes[architecture]
    here = twin.point(twin.layer(point))
    rules = tuple(rule for make in CASES.values() for rule in make(here).rules)
    runtime.set_policy(twin.policy(Case(rules, dose_max=0.01), mode=mode))
    found = runtime.logits(twin.tokens(), n_prompt=N_PROMPT)
    with PlainLlama(twin.model.path) as plain:
        np.testing.assert_array_equal(found, plain.logits(twin.tokens()))


def test_policy_without_rules(twin: Twin, runtimes: dict[str, Runtime]) -> None:
    runtimes["qwen3"].set_policy(twin.policy(Case(())))
    with PlainLlama(twin.model.path) as plain:
        found = runtimes["qwen3"].logits(twin.tokens())
        np.testing.assert_array_equal(found, plain.logits(twin.tokens()))


@pytest.mark.parametrize("architecture", SHAPES)
def test_amplify_is_llama_cpps_control_vector(architecture: str, twins: dict[str, Twin]) -> None:
    """At each block alone, then at all: the whole prompt, then token by token."""
    twin = twins[architecture]
    tokens, alpha = twin.tokens(), 0.7
    layers = sorted(twin.pack.directions)
    for chosen in [*([layer] for layer in layers), layers]:
        vectors = [twin.pack.directions[layer] for layer in chosen]
        policy = twin.policy(Case((Rule("amplify", tuple(vectors), alpha=alpha),)))
        scaled = {vector.layer: np.float32(alpha) * vector.d for vector in vectors}
        with hooked_llama(twin.model.path, policy) as hooked, PlainLlama(twin.model.path) as plain:
            plain.set_control_vector(scaled)
            hooked.live_hook.request_begin(0, 1, N_PROMPT)
            found = [hooked.decode(tokens[:N_PROMPT], 0, all_logits=True)]
            wanted = [plain.extend(tokens[:N_PROMPT], 0)]
            for position in range(N_PROMPT, len(tokens)):
                found.append(hooked.decode([tokens[position]], position)[None])
                wanted.append(plain.decode([Column(tokens[position], position)]))
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))


def test_amplify_of_a_feature_is_its_direction_as_a_control_vector(twin: Twin) -> None:
    latent = twin.pack.latents[twin.layer("middle")][5]
    tokens = twin.tokens()
    with hooked_llama(twin.model.path) as hooked, PlainLlama(twin.model.path) as plain:
        install(hooked, twin.policy(Case((Rule("amplify", (latent,), alpha=1.3),))))
        hooked.live_hook.request_begin(0, 1, len(tokens))
        plain.set_control_vector({latent.layer: np.float32(1.3) * latent.d})
        found = hooked.decode(tokens, 0, all_logits=True)
        np.testing.assert_array_equal(found, plain.logits(tokens))
