"""Logits under every intervention, at every kind of hook point, equal the PyTorch reference's."""

from __future__ import annotations

import pytest

from scope_runtime.runtime import Runtime
from tests.exactness.conftest import BOUND, BOUND_AS_IT_COMES, POINTS, Equal, Twin, difference
from tests.support.interventions import CASES, N_PROMPT, Case
from tests.support.plain_llama import PlainLlama
from tests.support.random_model import SHAPES
from tests.support.torch_reference import EMBEDDING, Rule, run

EFFECT = 0.02
"""An intervention must move the logits by so much of their range, or equality would show nothing."""


@pytest.mark.parametrize("architecture", SHAPES)
def test_unsteered(architecture: str, twins: dict[str, Twin], equal: Equal) -> None:
    twin = twins[architecture]
    with PlainLlama(twin.model.path) as plain:
        equal(plain.logits(twin.tokens()), twin.unsteered(), "unsteered")


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("architecture", SHAPES)
def test_intervention(
    architecture: str,
    point: str,
    case_name: str,
    twins: dict[str, Twin],
    runtimes: dict[str, Runtime],
    equal: Equal,
) -> None:
    twin, runtime = twins[architecture], runtimes[architecture]
    case = CASES[case_name](twin.point(twin.layer(point)))
    check_case(twin, runtime, case, case_name, equal)


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("point", POINTS)
def test_intervention_in_llama_cpp_as_it_comes(
    point: str, case_name: str, twin: Twin, default_runtime: Runtime, equal: Equal
) -> None:
    case = CASES[case_name](twin.point(twin.layer(point)))
    check_case(twin, default_runtime, case, "as it comes", equal, BOUND_AS_IT_COMES)


@pytest.mark.parametrize("architecture", SHAPES)
def test_control_vector_at_all_layers(
    architecture: str, twins: dict[str, Twin], runtimes: dict[str, Runtime], equal: Equal
) -> None:
    twin = twins[architecture]
    rules = (
        Rule("amplify", tuple(twin.pack.directions.values()), alpha=0.8),
        Rule("amplify", tuple(twin.pack.directions.values()), alpha=-0.1, unit="residual"),
    )
    check_case(twin, runtimes[architecture], Case(rules), "control vector", equal)


@pytest.mark.parametrize("architecture", SHAPES)
def test_rules_at_every_hook_point_at_once(
    architecture: str, twins: dict[str, Twin], runtimes: dict[str, Runtime], equal: Equal
) -> None:
    twin = twins[architecture]
    rules = []
    for layer in range(EMBEDDING, twin.model.shape.n_layer):
        one, two, three = twin.point(layer).firing(3)
        rules.append(Rule("mute", (one, two)))
        rules.append(Rule("amplify", (three,), alpha=0.1, unit="residual", phase="generation"))
    check_case(twin, runtimes[architecture], Case(tuple(rules)), "every hook point", equal)


def check_case(
    twin: Twin, runtime: Runtime, case: Case, what: str, equal: Equal, bound: float = BOUND
) -> None:
    model, tokens = twin.model.torch_model, twin.tokens()
    runtime.set_policy(twin.policy(case))
    wanted = run(model, tokens, case.rules, n_prompt=N_PROMPT, dose_max=case.dose_max).logits
    assert difference(twin.unsteered(), wanted) > EFFECT
    equal(runtime.logits(tokens, n_prompt=N_PROMPT), wanted, what, bound)
