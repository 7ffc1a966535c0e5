"""Last stage of compilation: planned rules become the tables of scope_program.h and summed control vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from scope_runtime.plan import PlannedRule
from scope_runtime.policy.model import (
    Action,
    GateKind,
    Mode,
    OnExcess,
    Op,
    Phase,
    Policy,
    PositionsOf,
    Watch,
)
from scope_runtime.policy.revision import revision_of
from scope_runtime.program import (
    ACTION_ABORT,
    DELTA_ABLATE,
    NONE,
    OPS,
    FloatArray,
    Layout,
    Program,
    ProgramRule,
    Target,
    empty_program,
    program_digest,
    serialise,
)
from scope_runtime.resolve import Artefacts, Latent
from scope_runtime.types import ModelShape

_GATES = {GateKind.NONE: 0, GateKind.RELU: 1, GateKind.THRESHOLD: 2, GateKind.TOPK: 3}
_EXCESS = {OnExcess.CLAMP: 1, OnExcess.WARN: 2, OnExcess.ABORT: 3}
_PHASES = {None: 0, Phase.PROMPT: 1, Phase.GENERATION: 2}
_INT32 = np.iinfo(np.int32)


def lay_out(
    planned: list[PlannedRule],
    on_vector: frozenset[int],
    policy: Policy,
    artefacts: Artefacts,
    shape: ModelShape,
) -> Program:
    """Tables of the hook's program for the callback plane, summed directions for the control-vector plane."""
    packs = tuple((name, f"sha256:{digest}") for name, digest in artefacts.digests())
    # Of the files as they were opened: what they hold by now is not what is compiled.
    revision = revision_of(policy, dict(packs))
    if not planned:
        return replace(
            empty_program(shape.n_embd, shape.n_layer, shape.architecture),
            policy=policy.name,
            revision=revision,
        )
    hooked = [r for r in planned if r.watched or any(d.layer not in on_vector for d in r.deltas)]
    rest = [r for r in planned if not any(r is other for other in hooked)]

    layout = Layout(shape.n_embd, shape.n_layer)
    if policy.dose_limit is not None:
        layout.dose_max = policy.dose_limit.max
        layout.on_excess = _EXCESS[policy.dose_limit.on_excess]
    index = _lay_features(layout, hooked, on_vector)
    for rule in hooked:
        _lay_rule(layout, rule, index)
    _lay_switches(layout, hooked)
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
        revision=revision,
        digest=program_digest(blob, vectors),
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        architecture=shape.architecture,
        packs=packs,
        notes=_notes(planned, on_vector),
        phase_dependent=any(_depends_on_phase(r, shape.n_layer - 1) for r in planned),
    )


def _depends_on_phase(planned: PlannedRule, last_block: int) -> bool:
    """Whether it matters to the rule where the prompt ends. (What switches it on is a rule of its own.)

    What is watched at the last block is measured only where logits are wanted, which a prompt's tokens are not.
    """
    when, watches = (
        planned.rule.when,
        planned.rule.alert is not None or planned.condition is not None,
    )
    return (
        when.phase is not None
        or (when.positions is not None and when.positions.of is PositionsOf.ANSWER)
        or (watches and any(latent.layer == last_block for latent in planned.measured))
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


def _lay_rule(layout: Layout, planned: PlannedRule, index: Index) -> None:
    rule, when = planned.rule, planned.rule.when
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
            "switch_on": NONE,
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


def _lay_switches(layout: Layout, hooked: list[PlannedRule]) -> None:
    """A rule that an alert switches on waits for the alert's own trigger: with its scope, condition and count."""
    numbers = {planned.rule.name: number for number, planned in enumerate(hooked)}
    for planned, row in zip(hooked, layout.rules, strict=True):
        if planned.switched_by is not None:
            row["switch_on"] = layout.rules[numbers[planned.switched_by[0].name]]["alert"]


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
        targets=tuple(Target(target.layer, str(target)) for target in planned.targets),
        layers=planned.layers,
        plane=plane,
        why=reason,
        alert=planned.rule.alert,
    )
