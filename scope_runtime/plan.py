"""Second stage of compilation: each rule becomes features to measure and deltas to add, at layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scope_runtime.errors import CompileError
from scope_runtime.policy.model import Condition, Mode, Op, Policy, Rule, Unit
from scope_runtime.program import (
    DELTA_ABLATE,
    DELTA_ADD,
    DELTA_ADD_RESIDUAL,
    DELTA_CLAMP,
    DELTA_SCALE,
    FloatArray,
)
from scope_runtime.resolve import Artefacts, Direction, Latent, resolve, resolve_latents
from scope_runtime.types import ModelShape


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
    """A rule that is not off: what it adds where, what it watches, and what must hold for it to act."""

    rule: Rule
    mode: Mode
    targets: tuple[Latent | Direction, ...]
    deltas: list[Delta]
    watched: tuple[Latent, ...] = ()
    condition: tuple[Condition, tuple[Latent, ...]] | None = None
    switched_by: tuple[Rule, tuple[Latent, ...]] | None = None
    """The alert rule that switches it on, and what that watches."""

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


def plan(policy: Policy, artefacts: Artefacts, shape: ModelShape) -> list[PlannedRule]:
    """Every rule that is not off, as deltas to add and features to watch."""
    switches: dict[str, tuple[Rule, tuple[Latent, ...]]] = {}
    for rule in policy.rules:
        if rule.alert is not None:
            for name in rule.alert.switch_on:
                switches[name] = (rule, resolve_latents(policy, artefacts, rule.targets))

    out = []
    for rule in policy.rules:
        planned = _planned(policy, artefacts, rule)
        condition = rule.when.condition
        if condition is not None:
            planned.condition = (
                condition,
                resolve_latents(policy, artefacts, (condition.feature,)),
            )
        planned.switched_by = switches.get(rule.name)
        _check_order(planned)
        for layer in planned.layers:
            if layer >= shape.n_layer:
                raise CompileError(
                    f"rule {rule.name} acts at a layer that the model has not",
                    location=rule.location,
                    found=f"layer {layer}",
                    expected=f"embedding or 0 to {shape.n_layer - 1}",
                )
        out.append(planned)
    _weaken(out)
    return [planned for planned in out if planned.mode is not Mode.OFF]


_ORDER = (Mode.OFF, Mode.AUDIT, Mode.ENFORCE)


def _weaken(planned: list[PlannedRule]) -> None:
    """What an alert switches on is never stronger than the alert: an alert that is off switches nothing on, one that
    only audits changes nothing through another rule.
    """
    by_name = {each.rule.name: each for each in planned}
    for _ in planned:  # chains of switches are no longer than that, and rings were refused
        for each in planned:
            if each.switched_by is not None:
                switch = by_name[each.switched_by[0].name]
                each.mode = min(each.mode, switch.mode, key=_ORDER.index)


def with_their_switches(planned: list[PlannedRule]) -> list[PlannedRule]:
    """Without the rules whose switching alert is not there: nothing could switch them on."""
    while True:
        names = {each.rule.name for each in planned}
        kept = [
            each
            for each in planned
            if each.switched_by is None or each.switched_by[0].name in names
        ]
        if len(kept) == len(planned):
            return kept
        planned = kept


def _mode(policy: Policy, rule: Rule) -> Mode:
    """A rule may be milder than its policy, never stronger: audit under an enforcing policy, not the reverse."""
    return min(policy.mode, rule.mode or policy.mode, key=_ORDER.index)


def _check_order(planned: PlannedRule) -> None:
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


def _planned(policy: Policy, artefacts: Artefacts, rule: Rule) -> PlannedRule:
    mode = _mode(policy, rule)
    if rule.op in (Op.AMPLIFY, Op.ABLATE):
        targets = resolve(policy, artefacts, rule.targets)
        deltas = (
            _ablate(rule, targets)
            if rule.op is Op.ABLATE
            else [_amplify(rule, target) for target in targets]
        )
        return PlannedRule(rule, mode, targets, deltas)
    latents = resolve_latents(policy, artefacts, rule.targets)
    if rule.op is Op.ALERT:
        return PlannedRule(rule, mode, latents, [], latents)
    return PlannedRule(rule, mode, latents, [_on_activation(rule, latent) for latent in latents])


def _on_activation(rule: Rule, latent: Latent) -> Delta:
    if rule.op is Op.CLAMP:
        low = -math.inf if rule.min is None else rule.min
        high = math.inf if rule.max is None else rule.max
        return Delta(latent.layer, DELTA_CLAMP, latent.d, latent, low, high)
    factor = 0.0 if rule.factor is None or rule.op is Op.MUTE else rule.factor
    return Delta(latent.layer, DELTA_SCALE, latent.d, latent, factor - 1.0)


def _amplify(rule: Rule, item: Latent | Direction) -> Delta:
    alpha = np.float32(rule.alpha if rule.alpha is not None else 0.0)
    norm = float(np.linalg.norm(item.d.astype(np.float64)))
    if norm == 0.0:
        raise CompileError(
            f"the direction of {item} has no length, so amplify adds nothing",
            location=item.location,
        )
    if rule.unit is Unit.RESIDUAL:
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
        if not recorded > 0.0:
            raise CompileError(
                f"the recorded maximum of {item} is {recorded:g}, so unit: max adds nothing",
                location=rule.location,
                key="unit",
                hint="Calibrate the pack on texts where the feature fires, or use unit: residual",
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
