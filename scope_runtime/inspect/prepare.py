"""What a sweep needs before anything is steered: strengths, texts as the model reads them, control arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.cases.model import Case
from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.inspect import arms as arms_
from scope_runtime.inspect.collateral import FeatureShift, ScoredText, scored
from scope_runtime.inspect.statistics import Floats
from scope_runtime.inspect.strength import strength_of
from scope_runtime.inspect.texts import tokenised
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.model import Op, Policy, Rule
from scope_runtime.recording import RecordedText, Recording
from scope_runtime.replay import hook_points, recorded_text
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.llama.checks import ModelInfo
    from scope_runtime.sae import SaeLayers

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Strengths that are tried unless others are asked for: of a mute as they are, of an amplification times its own."""


@dataclass(frozen=True, slots=True)
class Collateral:
    """What the rule should leave alone.

    Attributes:
        texts: their perplexity is watched, and what other features become in them.
        cases: they should go on to hold.
        recording: texts that were recorded, for other features alone.
    """

    texts: tuple[Text, ...] = ()
    cases: tuple[Case, ...] = ()
    recording: Recording | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """Texts with and without the behaviour, for the arm of their mean difference."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]


def grid_of(rule: Rule, strengths: Sequence[float] | None) -> Floats:
    """None at all, and then what is tried, the weakest first. Raises UsageError where that is nothing."""
    own = strength_of(rule) if rule.op is Op.AMPLIFY else 1.0
    given = np.array(strengths if strengths is not None else [own * each for each in SHARES])
    if not np.isfinite(given).all():
        raise UsageError("a strength is not finite", found=str(given.tolist()))
    others = np.unique(given[given != 0])
    if not len(others):
        raise UsageError("there is no strength to try", expected="one or more other than 0")
    return np.concatenate([[0.0], others[np.argsort(np.abs(others), kind="stable")]])


def read_before(
    policy: Policy,
    rule: Rule,
    collateral: Collateral,
    contrast: Contrast | None,
    model: str | Path | None,
    n_ctx: int,
    n_threads: int | None,
    notes: list[str],
) -> tuple[ModelShape, tuple[ScoredText, ...], list[RecordedText], tuple[int, F32Array] | None]:
    """What the model says of the texts before anything is steered."""
    from scope_runtime.compile import assumed_shape
    from scope_runtime.resolve import load_artefacts

    if model is None:
        if contrast is not None:
            notes.append("no arm of the mean difference: it needs a model")
        shape = assumed_shape(policy, load_artefacts(policy))
        return shape, (), _recorded(policy, shape, collateral), None
    from scope_runtime.llama.capture import capturing, residuals
    from scope_runtime.llama.checks import check_model

    info: ModelInfo = check_model(model)
    shape = ModelShape(info.architecture, info.n_layer, info.n_embd)
    points = hook_points(ProgramSource(policy, shape).program)
    with capturing(model, n_ctx=n_ctx, n_threads=n_threads) as context:
        texts = scored(context, collateral.texts)
        recorded = _recorded(policy, shape, collateral)
        for one, read in zip(
            texts, residuals(context, [t.tokens for t in texts], points), strict=True
        ):
            half = {layer: h.astype(np.float16) for layer, h in read.layers.items()}
            recorded.append(RecordedText(read.tokens, half, one.n_prompt))
        if contrast is None:
            return shape, texts, recorded, None
        layer = max(
            points, key=lambda at: sum(f.layer == at for f in arms_.features_of(policy, rule))
        )
        ends = [
            np.stack(
                [r.layers[layer][-1] for r in residuals(context, tokenised(context, kind), [layer])]
            )
            for kind in (contrast.positive, contrast.negative)
        ]
    return shape, texts, recorded, (layer, ends[0].mean(axis=0) - ends[1].mean(axis=0))


def _recorded(policy: Policy, shape: ModelShape, collateral: Collateral) -> list[RecordedText]:
    if collateral.recording is None:
        return []
    program = ProgramSource(policy, shape).program
    n = len(collateral.recording.texts)
    return [recorded_text(collateral.recording, number, program)[0] for number in range(n)]


def control_arms(
    own: arms_.Arm,
    policy: Policy,
    rule: Rule,
    saes: SaeLayers | None,
    direction: tuple[int, F32Array] | None,
    shift: FeatureShift | None,
    shape: ModelShape,
    grid: Floats,
    folder: Path,
    seed: int,
    notes: list[str],
) -> list[arms_.Arm]:
    """The arms that can be had, at the policy's own dose; and in the notes why others cannot."""
    if shift is None:
        notes.append("no control arms: their dose is set in collateral texts, and there are none")
        return []

    def dose(arm: arms_.Arm) -> float:
        full = float(grid[-1])
        assert shift is not None
        unmeasured = replace(shift, saes=None)
        return unmeasured.under(ProgramSource(arm.at(full), shape).program, rule.name)[0] / full

    wanted, out = dose(own), []
    if saes is None:
        notes.append(
            "no arm of random features, no shift of others: they need whole SAE layers (--sae)"
        )
    else:
        try:
            layers = {each.layer for each in arms_.features_of(policy, rule)}
            active = {
                at: [np.unique(saes.layer(at).encode(t.residual(at)).ids) for t in shift.texts]
                for at in layers
            }
            arm = arms_.random_arm(policy, rule, saes, active, shape, folder, seed)
            found = dose(arm)
            out.append(arms_.scaled(arm, wanted / found) if found > 0 else arm)
        except ScopeError as reason:
            notes.append(f"no arm of random features: {reason}")
    if direction is not None:
        try:
            sign = wanted if rule.op is Op.AMPLIFY else -wanted
            layer, vector = direction
            out.append(arms_.mean_arm(policy, rule, layer, vector, sign, folder))
        except ScopeError as reason:
            notes.append(f"no arm of the mean difference: {reason}")
    return out
