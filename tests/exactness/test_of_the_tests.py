"""Would the exactness tests notice? Each small lie must be far outside their bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scope_runtime.runtime import Runtime
from tests.exactness.conftest import BOUND, POINTS, Equal, Twin, difference
from tests.support.interventions import N_PROMPT, Case
from tests.support.torch_reference import Rule, run


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_that_does_nothing_fails(
    point: str, twin: Twin, runtimes: dict[str, Runtime], equal: Equal
) -> None:
    rules = (Rule("mute", tuple(twin.point(twin.layer(point)).firing(4))),)
    runtimes["qwen3"].set_policy(None)
    wanted = run(twin.model.torch_model, twin.tokens(), rules).logits
    with pytest.raises(AssertionError, match="of the logits' range"):
        equal(runtimes["qwen3"].logits(twin.tokens()), wanted, "not counted")


@pytest.mark.parametrize("lie", ["feature", "layer", "phase", "gate", "sign"])
def test_a_small_lie_fails(lie: str, twin: Twin, runtimes: dict[str, Runtime]) -> None:
    """Random features in the place of the right ones, one layer off, one token off …"""
    layer = twin.layer("middle")
    (latent,) = twin.point(layer).firing(1)
    told = Rule("mute", (latent,), phase="generation")
    runtimes["qwen3"].set_policy(twin.policy(Case((told,))))
    found = runtimes["qwen3"].logits(twin.tokens(), n_prompt=N_PROMPT)
    other = twin.pack.latents[layer][(latent.id + 1) % len(twin.pack.latents[layer])]
    meant = {
        "feature": replace(told, targets=(other,)),
        "layer": replace(told, targets=(replace(latent, layer=layer + 1),)),
        "phase": replace(told, phase=None, positions=(N_PROMPT, None)),
        "gate": replace(told, targets=(twin.pack.gated(latent, "none"),)),
        "sign": replace(told, op="scale", factor=2.0),
    }
    honest = run(twin.model.torch_model, twin.tokens(), (told,), n_prompt=N_PROMPT).logits
    wanted = run(twin.model.torch_model, twin.tokens(), (meant[lie],), n_prompt=N_PROMPT).logits
    assert difference(found, honest) <= BOUND
    assert difference(found, wanted) > 100 * BOUND


def test_difference_is_in_units_of_the_range() -> None:
    wanted = np.array([[0.0, 4.0]], np.float32)
    assert difference(wanted + 1, wanted) == pytest.approx(0.25)
