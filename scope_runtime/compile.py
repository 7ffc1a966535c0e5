"""Policy and packs in, Program out. The stages, in order:

    load_artefacts   open every pack and vector the policy names           (resolve.py)
    check_fit        the policy, its packs and the model belong together   (resolve.py)
    plan             each rule becomes features to measure and deltas to add, at layers
    place            layers go to the callback or to llama.cpp's control vector
    lay out          tables of scope_program.h                             (program.py)

Every failure is a ScopeError that names file, line and column; nothing is half compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from scope_runtime.errors import CompileError
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.model import (
    EMBEDDING,
    Action,
    AlertSpec,
    Condition,
    GateKind,
    Mode,
    OnExcess,
    Op,
    Phase,
    Policy,
    PositionsOf,
    Rule,
    Unit,
    Watch,
)
from scope_runtime.policy.revision import policy_revision
from scope_runtime.program import (
    ACTION_ABORT,
    DELTA_ABLATE,
    DELTA_ADD,
    DELTA_ADD_RESIDUAL,
    DELTA_CLAMP,
    DELTA_SCALE,
    NONE,
    OPS,
    FloatArray,
    Layout,
    Program,
    ProgramRule,
    empty_program,
    program_digest,
    serialise,
)
from scope_runtime.resolve import (
    Artefacts,
    Direction,
    Latent,
    check_fit,
    load_artefacts,
    resolve,
    resolve_latents,
    shape_of_packs,
)
from scope_runtime.types import ModelShape

_GATES = {GateKind.NONE: 0, GateKind.RELU: 1, GateKind.THRESHOLD: 2, GateKind.TOPK: 3}
_EXCESS = {OnExcess.CLAMP: 1, OnExcess.WARN: 2, OnExcess.ABORT: 3}
_PHASES = {None: 0, Phase.PROMPT: 1, Phase.GENERATION: 2}
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True)
class Delta:
    """One contribution of one rule at one layer, before placement."""

    layer: int
    kind: int
    rows: FloatArray
    latent: Latent | None = None
    a: float = 0.0
    b: float = 0.0


@dataclass(slots=True)
class PlannedRule:
    rule: Rule
    mode: Mode
    deltas: list[Delta]
    watched: tuple[Latent, ...] = ()
    condition: tuple[Condition, tuple[Latent, ...]] | None = None
    switched_by: tuple[AlertSpec, tuple[Latent, ...]] | None = None
    words: list[str] = field(default_factory=list)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({d.layer for d in self.deltas} | {w.layer for w in self.watched}))

    @property
    def measured(self) -> list[Latent]:
        latents = [d.latent for d in self.deltas if d.latent is not None] + list(self.watched)
        for source in (self.condition, self.switched_by):
            latents += source[1] if source else ()
        return latents

    @property
    def acts(self) -> bool:
        return bool(self.deltas) and self.mode is Mode.ENFORCE


def compile_policy(
    policy: Policy,
    shape: ModelShape,
    *,
    artefacts: Artefacts | None = None,
    control_vector_layers: frozenset[int] = frozenset(),
) -> Program:
    """Compiles a policy for one model.

    Args:
        policy: as ``load_policy`` returns it.
        shape: the model's architecture, blocks and width.
        artefacts: opened packs and vectors, when the caller has them.
        control_vector_layers: layers where llama.cpp's control vector is cheaper than the callback (those on a GPU).
            A layer goes there only if nothing at it has to be measured; its dose is then not measured either.

    Raises:
        ScopeError: the policy cannot be carried out on this model; the message says where and why.
    """
    artefacts = artefacts if artefacts is not None else load_artefacts(policy)
    check_fit(policy, artefacts, shape)
    planned = plan(policy, artefacts, shape)
    if policy.mode is Mode.OFF:
        planned = []
    on_vector = place(planned, policy, control_vector_layers)
    return lay_out(planned, on_vector, policy, artefacts, shape)


def check_against_packs(policy: Policy) -> Program:
    """Compiles for the model that the policy's packs were made for: what ``scope check`` can prove without a model."""
    artefacts = load_artefacts(policy)
    shape = shape_of_packs(artefacts)
    if shape is None:
        widths = {v.size for vector in artefacts.vectors.values() for v in vector.layers.values()}
        depth = max((max(vector.layers) for vector in artefacts.vectors.values()), default=0)
        wanted = policy.model
        shape = ModelShape(
            (wanted.architecture if wanted else None) or "any",
            (wanted.layers if wanted else None) or depth + 1,
            (wanted.width if wanted else None) or max(widths, default=1),
        )
    return compile_policy(policy, shape, artefacts=artefacts)


def compile_file(path: str, shape: ModelShape) -> Program:
    """``load_policy`` and ``compile_policy`` in one."""
    return compile_policy(load_policy(path), shape)


def plan(policy: Policy, artefacts: Artefacts, shape: ModelShape) -> list[PlannedRule]:
    """Every rule that is not off, as deltas to add and features to watch."""
    switches: dict[str, tuple[AlertSpec, tuple[Latent, ...]]] = {}
    for rule in policy.rules:
        if rule.alert is not None and _mode(policy, rule) is not Mode.OFF:
            for name in rule.alert.switch_on:
                switches[name] = (rule.alert, resolve_latents(policy, artefacts, rule.targets))

    out = []
    for rule in policy.rules:
        planned = PlannedRule(rule, _mode(policy, rule), _deltas(policy, artefacts, rule))
        if rule.op is Op.ALERT:
            planned.watched = resolve_latents(policy, artefacts, rule.targets)
        condition = rule.when.condition
        if condition is not None:
            planned.condition = (
                condition,
                resolve_latents(policy, artefacts, (condition.feature,)),
            )
        planned.switched_by = switches.get(rule.name)
        _check_order(planned, policy)
        for layer in planned.layers:
            if layer >= shape.n_layer:
                raise CompileError(
                    f"rule {rule.name} acts at a layer that the model has not",
                    location=rule.location,
                    found=f"layer {layer}",
                    expected=f"embedding or 0 to {shape.n_layer - 1}",
                )
        if planned.mode is not Mode.OFF:
            out.append(planned)
    return out


def _mode(policy: Policy, rule: Rule) -> Mode:
    """A rule may be milder than its policy, never stronger: audit under an enforcing policy, not the reverse."""
    order = [Mode.OFF, Mode.AUDIT, Mode.ENFORCE]
    return min(policy.mode, rule.mode or policy.mode, key=order.index)


def _check_order(planned: PlannedRule, policy: Policy) -> None:
    """A condition is measured where it is used or before; a later layer cannot be known yet at this token."""
    if not planned.layers:
        return
    first = planned.layers[0] if planned.deltas else planned.layers[-1]
    for source, what in (
        (planned.condition, "condition"),
        (planned.switched_by, "switching alert"),
    ):
        if source is None:
            continue
        latest = max(source[1], key=lambda latent: latent.layer)
        if latest.layer > first:
            raise CompileError(
                f"the {what} of rule {planned.rule.name} is measured after the rule acts",
                location=planned.rule.location,
                found=f"{latest}",
                expected=f"layer {first} or earlier" if first >= 0 else "the embedding",
                hint="Use a feature of an earlier layer",
            )


def _deltas(policy: Policy, artefacts: Artefacts, rule: Rule) -> list[Delta]:
    if rule.op is Op.ALERT:
        return []
    if rule.op is Op.AMPLIFY:
        return [_amplify(rule, item) for item in resolve(policy, artefacts, rule.targets)]
    if rule.op is Op.ABLATE:
        return _ablate(rule, resolve(policy, artefacts, rule.targets))
    out = []
    for latent in resolve_latents(policy, artefacts, rule.targets):
        if rule.op is Op.CLAMP:
            low = -math.inf if rule.min is None else rule.min
            high = math.inf if rule.max is None else rule.max
            out.append(Delta(latent.layer, DELTA_CLAMP, latent.d, latent, low, high))
        else:
            factor = 0.0 if rule.factor is None or rule.op is Op.MUTE else rule.factor
            out.append(Delta(latent.layer, DELTA_SCALE, latent.d, latent, factor - 1.0))
    return out


def _amplify(rule: Rule, item: Latent | Direction) -> Delta:
    alpha = np.float32(rule.alpha if rule.alpha is not None else 0.0)
    if rule.unit is Unit.RESIDUAL:
        norm = float(np.linalg.norm(item.d.astype(np.float64)))
        if norm == 0.0:
            raise CompileError(
                f"the direction of {item} has no length, so unit: residual means nothing",
                location=item.location,
            )
        unit = (item.d.astype(np.float64) / norm).astype(np.float32)
        return Delta(item.layer, DELTA_ADD_RESIDUAL, unit, None, float(alpha))
    if rule.unit is Unit.MAX:
        recorded = item.recorded_max if isinstance(item, Latent) else None
        if recorded is None:
            raise CompileError(
                f"unit: max needs the recorded maximum of {item}, and there is none",
                location=rule.location,
                key="unit",
                expected="a calibrated pack" if isinstance(item, Latent) else "a pack feature",
                hint="Calibrate the pack, or use unit: residual",
            )
        alpha = np.float32(alpha * np.float32(recorded))
    # F32 times F32, the product that llama.cpp's --control-vector-scaled makes: the sum is bit-identical to it.
    return Delta(item.layer, DELTA_ADD, item.d * alpha)


def _ablate(rule: Rule, items: tuple[Latent | Direction, ...]) -> list[Delta]:
    by_layer: dict[int, list[FloatArray]] = {}
    for item in items:
        by_layer.setdefault(item.layer, []).append(item.d)
    return [
        Delta(layer, DELTA_ABLATE, span_basis(np.stack(rows), rule))
        for layer, rows in sorted(by_layer.items())
    ]


def span_basis(rows: FloatArray, rule: Rule) -> FloatArray:
    """Orthonormal rows (rank, n_embd) that span the given rows (n, n_embd): SVD in F64, rank to 1e-6 of the largest."""
    _, sizes, basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    rank = int((sizes > sizes[0] * 1e-6).sum()) if sizes[0] > 0 else 0
    if rank == 0:
        raise CompileError(
            f"rule {rule.name} ablates directions of no length", location=rule.location
        )
    return basis[:rank].astype(np.float32)


def place(planned: list[PlannedRule], policy: Policy, candidates: frozenset[int]) -> frozenset[int]:
    """Layers that go to llama.cpp's control vector: where it is cheaper and nothing has to be measured."""
    if not candidates or policy.dose_limit is not None or policy.selector is not None:
        return frozenset()
    eligible = set(candidates) - {EMBEDDING, 0}
    for rule in planned:
        plain = (
            rule.acts
            and rule.rule.when.phase is None
            and rule.rule.when.positions is None
            and rule.condition is None
            and rule.switched_by is None
            and rule.rule.rollout is None
            and all(delta.kind == DELTA_ADD for delta in rule.deltas)
        )
        eligible -= {latent.layer for latent in rule.measured}
        if not plain:
            eligible -= set(rule.layers)
    return frozenset(eligible & {d.layer for rule in planned for d in rule.deltas})


def lay_out(
    planned: list[PlannedRule],
    on_vector: frozenset[int],
    policy: Policy,
    artefacts: Artefacts,
    shape: ModelShape,
) -> Program:
    """Tables of the hook's program for the callback plane, summed directions for the control-vector plane."""
    if not planned:
        return _with_identity(
            empty_program(shape.n_embd, shape.n_layer, shape.architecture), policy
        )
    hooked = [r for r in planned if r.watched or any(d.layer not in on_vector for d in r.deltas)]
    rest = [r for r in planned if not any(r is other for other in hooked)]

    layout = Layout(shape.n_embd, shape.n_layer)
    if policy.dose_limit is not None:
        layout.dose_max = policy.dose_limit.max
        layout.on_excess = _EXCESS[policy.dose_limit.on_excess]
    index = _lay_features(layout, hooked, on_vector)
    for number, rule in enumerate(hooked):
        _lay_rule(layout, number, rule, index)
    _lay_deltas(layout, hooked, on_vector, index)

    vectors: dict[int, FloatArray] = {}
    for rule in planned:
        for delta in rule.deltas:
            if delta.layer in on_vector:
                vectors[delta.layer] = vectors.get(delta.layer, np.float32(0)) + delta.rows
    blob = serialise(layout)
    return Program(
        blob=blob,
        rules=tuple(_describe(r, on_vector) for r in hooked + rest),
        n_hooked=len(hooked),
        control_vectors=MappingProxyType(vectors),
        policy=policy.name,
        revision=policy_revision(policy),
        digest=program_digest(blob, vectors),
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        architecture=shape.architecture,
        packs=tuple((name, pack.digest) for name, pack in artefacts.packs.items())
        + tuple((name, vector.digest) for name, vector in artefacts.vectors.items()),
        notes=_notes(planned, on_vector),
        phase_dependent=any(
            r.acts
            and (
                r.rule.when.phase is not None
                or (
                    r.rule.when.positions is not None
                    and r.rule.when.positions.of is PositionsOf.ANSWER
                )
            )
            for r in planned
        ),
    )


def _with_identity(program: Program, policy: Policy) -> Program:
    return Program(
        blob=program.blob,
        rules=(),
        n_hooked=0,
        control_vectors=program.control_vectors,
        policy=policy.name,
        revision=policy_revision(policy),
        digest=program.digest,
        n_embd=program.n_embd,
        n_layer=program.n_layer,
        architecture=program.architecture,
        packs=(),
        notes=(),
        phase_dependent=False,
    )


Index = Mapping[tuple[object, ...], int]


def _lay_features(layout: Layout, hooked: list[PlannedRule], on_vector: frozenset[int]) -> Index:
    """Points and features: each feature once, by layer, in the order in which rules name them."""
    latents: dict[tuple[object, ...], Latent] = {}
    layers: set[int] = set()
    for rule in hooked:
        for latent in rule.measured:
            latents.setdefault(latent.key, latent)
            layers.add(latent.layer)
        layers |= {d.layer for d in rule.deltas if d.layer not in on_vector}
    encoders: dict[tuple[str, int, int], int] = {}
    index: dict[tuple[object, ...], int] = {}
    for layer in sorted(layers):
        here = [latent for latent in latents.values() if latent.layer == layer]
        layout.points.append(
            {"layer": layer, "first_feature": len(layout.features), "n_features": len(here)}
        )
        for latent in here:
            index[latent.key] = len(layout.features)
            encoder = NONE
            if latent.gate is GateKind.TOPK:
                which = (latent.pack.digest, layer, latent.k)
                if which not in encoders:
                    encoders[which] = len(layout.encoders)
                    full = latent.pack.layers[layer]
                    layout.encoders.append(
                        {
                            "d_sae": len(full.full_enc),  # type: ignore[arg-type]
                            "k": latent.k,
                            "off_rows": layout.row(full.full_enc),  # type: ignore[arg-type]
                            "off_bias": layout.row(full.full_enc_bias),  # type: ignore[arg-type]
                        }
                    )
                encoder = encoders[which]
            layout.features.append(
                {
                    "gate": _GATES[latent.gate],
                    "encoder": encoder,
                    "latent": latent.id if encoder != NONE else 0,
                    "threshold": latent.threshold,
                    "bias": latent.b,
                    "off_row": layout.row(latent.w),
                }
            )
    return index


def _lay_rule(layout: Layout, number: int, planned: PlannedRule, index: Index) -> None:
    rule, when = planned.rule, planned.rule.when
    del number
    positions = when.positions
    alert = rule.alert
    layout.rules.append(
        {
            "op": OPS[rule.op],
            "mode": 0 if planned.mode is Mode.ENFORCE else 1,
            "phase": _PHASES[when.phase],
            "positions_of": 1 if positions and positions.of is PositionsOf.ANSWER else 0,
            "pos_from": _INT32.min if not positions or positions.first is None else positions.first,
            "pos_to": _INT32.max if not positions or positions.last is None else positions.last,
            "condition": _trigger_of_condition(layout, planned, index),
            "switch_on": _trigger_of_switch(layout, planned, index),
            "alert": NONE
            if alert is None
            else _trigger(
                layout,
                planned.watched,
                index,
                watch=alert.watch,
                above=alert.above,
                below=alert.below,
                for_tokens=alert.for_tokens,
                keep_tokens=alert.keep_firing_for_tokens,
            ),
            "actions": ACTION_ABORT if alert and Action.ABORT in alert.actions else 0,
        }
    )


def _trigger_of_condition(layout: Layout, planned: PlannedRule, index: Index) -> int:
    if planned.condition is None:
        return NONE
    condition, latents = planned.condition
    return _trigger(
        layout,
        latents,
        index,
        watch=condition.watch,
        above=condition.above,
        below=condition.below,
        hysteresis=condition.hysteresis,
        for_tokens=condition.for_tokens,
    )


def _trigger_of_switch(layout: Layout, planned: PlannedRule, index: Index) -> int:
    if planned.switched_by is None:
        return NONE
    alert, latents = planned.switched_by
    return _trigger(
        layout,
        latents,
        index,
        watch=alert.watch,
        above=alert.above,
        below=alert.below,
        for_tokens=alert.for_tokens,
        latch=1,
    )


def _trigger(
    layout: Layout,
    latents: tuple[Latent, ...],
    index: Index,
    *,
    watch: Watch,
    above: float | None,
    below: float | None,
    hysteresis: float = 0.0,
    for_tokens: int = 1,
    keep_tokens: int = 0,
    latch: int = 0,
) -> int:
    first = len(layout.trigger_features)
    layout.trigger_features += [index[latent.key] for latent in latents]
    layers = [point["layer"] for point in layout.points]
    layout.triggers.append(
        {
            "first_feature": first,
            "n_features": len(latents),
            "watch": 0 if watch is Watch.MAX else 1,
            "point": layers.index(max(latent.layer for latent in latents)),
            "above": math.inf if above is None else above,
            "below": -math.inf if below is None else below,
            "hysteresis": hysteresis,
            "for_tokens": for_tokens,
            "keep_tokens": keep_tokens,
            "latch": latch,
        }
    )
    return len(layout.triggers) - 1


def _lay_deltas(
    layout: Layout, hooked: list[PlannedRule], on_vector: frozenset[int], index: Index
) -> None:
    for point in layout.points:
        point["first_delta"] = len(layout.deltas)
        for number, planned in enumerate(hooked):
            for delta in planned.deltas:
                if delta.layer != point["layer"] or delta.layer in on_vector:
                    continue
                layout.deltas.append(
                    {
                        "rule": number,
                        "kind": delta.kind,
                        "feature": index[delta.latent.key] if delta.latent else NONE,
                        "rank": len(delta.rows) if delta.kind == DELTA_ABLATE else 1,
                        "a": delta.a,
                        "b": delta.b,
                        "off_row": layout.row(delta.rows),
                    }
                )
        point["n_deltas"] = len(layout.deltas) - point["first_delta"]


def _notes(planned: list[PlannedRule], on_vector: frozenset[int]) -> tuple[str, ...]:
    notes = {
        f"{latent}: {note}"
        for rule in planned
        for latent in rule.measured
        for note in latent.pack.layers[latent.layer].notes
        if latent.gate is not GateKind.TOPK
    }
    if on_vector:
        layers = ", ".join(str(layer) for layer in sorted(on_vector))
        notes.add(f"layers {layers}: on llama.cpp's control vector, where the dose is not measured")
    return tuple(sorted(notes))


def _describe(planned: PlannedRule, on_vector: frozenset[int]) -> ProgramRule:
    latents = dict.fromkeys(str(latent) for latent in planned.measured)
    placed = [layer for layer in planned.layers if layer in on_vector]
    plane = "callback" if len(placed) < len(planned.layers) else "control-vector"
    if plane == "control-vector":
        reason = "added in the graph by llama.cpp: nothing here has to be measured"
    elif planned.rule.op is Op.ALERT:
        reason = "callback: the residual has to be read"
    else:
        reason = "callback: acts on, and measures, every token"
    ranks = [str(len(d.rows)) for d in planned.deltas if d.kind == DELTA_ABLATE]
    if ranks:
        reason += f"; rank {', '.join(ranks)}"
    return ProgramRule(
        name=planned.rule.name,
        op=planned.rule.op,
        mode=planned.mode,
        features=tuple(latents),
        layers=planned.layers,
        plane=plane,
        why=reason,
        alert=planned.rule.alert,
    )
