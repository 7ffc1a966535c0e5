"""Policy and packs in, Program out. The stages, in order:

    load_artefacts   open every pack and vector the policy names            (resolve.py)
    check_fit        the policy, its packs and the model belong together    (resolve.py)
    plan             each rule becomes features to measure and deltas to add   (plan.py)
    place            layers go to the callback or to llama.cpp's control vector
    lay out          tables of scope_program.h, in its binary form         (layout.py, program.py)

Every failure is a ScopeError that names file, line and column; nothing is half compiled.
"""

from __future__ import annotations

from scope_runtime.layout import lay_out
from scope_runtime.plan import PlannedRule, plan, with_their_switches
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.model import EMBEDDING, Mode, Policy
from scope_runtime.program import DELTA_ADD, Program
from scope_runtime.resolve import Artefacts, check_fit, load_artefacts, shape_of_packs
from scope_runtime.types import ModelShape


def compile_policy(
    policy: Policy,
    shape: ModelShape,
    *,
    artefacts: Artefacts | None = None,
    control_vector_layers: frozenset[int] = frozenset(),
    rules: frozenset[str] | None = None,
) -> Program:
    """Compiles a policy for one model.

    Args:
        policy: as ``load_policy`` returns it.
        shape: the model's architecture, blocks and width.
        artefacts: opened packs and vectors, when the caller has them.
        control_vector_layers: layers where llama.cpp's control vector is cheaper than the callback (those on a GPU).
            A layer goes there only if nothing at it has to be measured; its dose is then not measured either.
        rules: names of the rules to keep; all by default.

    Raises:
        ScopeError: the policy cannot be carried out on this model; the message says where and why.
    """
    artefacts = artefacts if artefacts is not None else load_artefacts(policy)
    check_fit(policy, artefacts, shape)
    planned = plan(policy, artefacts, shape)
    if policy.mode is Mode.OFF:
        planned = []
    if rules is not None:
        planned = with_their_switches([p for p in planned if p.rule.name in rules])
    on_vector = place(planned, policy, control_vector_layers)
    return lay_out(planned, on_vector, policy, artefacts, shape)


def check_against_packs(policy: Policy) -> Program:
    """Compiles for the model that the policy's packs were made for: what ``scope check`` can prove without a model."""
    artefacts = load_artefacts(policy)
    return compile_policy(policy, assumed_shape(policy, artefacts), artefacts=artefacts)


def assumed_shape(policy: Policy, artefacts: Artefacts) -> ModelShape:
    """The model that the packs were made for; without packs, the smallest that the policy and its vectors fit."""
    shape = shape_of_packs(artefacts)
    if shape is not None:
        return shape
    widths = {v.size for vector in artefacts.vectors.values() for v in vector.layers.values()}
    depth = max((max(vector.layers) for vector in artefacts.vectors.values()), default=0)
    wanted = policy.model
    return ModelShape(
        (wanted.architecture if wanted else None) or "any",
        (wanted.layers if wanted else None) or depth + 1,
        (wanted.width if wanted else None) or max(widths, default=1),
    )


def compile_file(path: str, shape: ModelShape) -> Program:
    """``load_policy`` and ``compile_policy`` in one."""
    return compile_policy(load_policy(path), shape)


def place(planned: list[PlannedRule], policy: Policy, candidates: frozenset[int]) -> frozenset[int]:
    """Layers that go to llama.cpp's control vector: where it is cheaper and nothing has to be measured."""
    if not candidates or policy.dose_limit is not None:
        return frozenset()
    eligible = set(candidates) - {EMBEDDING, 0}
    for rule in planned:
        plain = (
            rule.acts
            and rule.rule.when.phase is None
            and rule.rule.when.positions is None
            and rule.condition is None
            and rule.switched_by is None
            and all(delta.kind == DELTA_ADD for delta in rule.deltas)
        )
        eligible -= {latent.layer for latent in rule.measured}
        if not plain:
            eligible -= set(rule.layers)
    return frozenset(eligible & {d.layer for rule in planned for d in rule.deltas})
