"""How strong a rule should be: its effect and what it costs, at several strengths, beside control arms."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.cases.model import Case, PolicyTest
from scope_runtime.cases.run import CaseBench, judge
from scope_runtime.errors import UsageError
from scope_runtime.inspect.arms import Arm, features_of, own_arm
from scope_runtime.inspect.collateral import FeatureShift, ScoredText, nll
from scope_runtime.inspect.prepare import (
    Collateral,
    Contrast,
    control_arms,
    grid_of,
    read_before,
)
from scope_runtime.inspect.propose import Limits, Proposal, interval, propose, resampled
from scope_runtime.inspect.statistics import Floats
from scope_runtime.inspect.strength import strength_of, swept_rule
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.model import Mode, Policy
from scope_runtime.policy.yaml12 import decode
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape

if TYPE_CHECKING:
    from scope_runtime.files import Progress
    from scope_runtime.sae import SaeLayers

Report = Callable[[str], "Progress | None"]
DEFAULTS = Limits()


def _quiet(_: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm at one strength; intervals are of 95 %, by bootstrap over cases or texts.

    Attributes:
        effect: share of target cases that hold.
        perplexity: of the collateral texts, over that without the rule; None: not measured.
        cases: share of collateral cases that hold; None: there are none.
        shift: Σ|Δz| over Σz of features that are not the rule's own, in collateral texts.
        dose: mean ‖Δh‖/‖h‖ over the tokens in the rule's phase, in collateral texts; None: there are none.
    """

    strength: float
    effect: float
    effect_interval: tuple[float, float]
    perplexity: float | None
    perplexity_interval: tuple[float, float] | None
    cases: float | None
    shift: float | None
    dose: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was measured.

    Attributes:
        arms: by name, the policy first; each at the same strengths, ascending, the first of them none.
        own: the rule's strength as it stands in the policy.
        notes: arms and measurements that could not be had, in sentences.
    """

    policy: str
    rule: str
    op: str
    own: float
    arms: dict[str, tuple[Measured, ...]] = field(repr=False)
    proposal: Proposal
    limits: Limits
    n_cases: int
    n_texts: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Sweep:
    bench: CaseBench
    target: PolicyTest
    collateral: Collateral
    model: Path | None
    texts: tuple[ScoredText, ...]
    shift: FeatureShift | None
    shape: ModelShape
    rule: str
    seed: int

    def run(
        self, arm: Arm, strengths: Floats, tick: Callable[[], None]
    ) -> tuple[tuple[Measured, ...], Floats, Floats | None, Floats | None]:
        """An arm at every strength; beside the summary what each case and text did."""
        rows = []
        for strength in strengths.tolist():
            policy = arm.at(strength or float(strengths[-1]))
            rows.append(self._at(policy if strength else replace(policy, mode=Mode.OFF)))
            tick()
        effect = np.array([row[0] for row in rows])
        cost = np.array([row[1] for row in rows]) if self.texts else None
        held = np.array([row[2] for row in rows]) if self.collateral.cases else None
        return (
            self._summary(strengths, effect, cost, held, [row[3] for row in rows]),
            effect,
            cost,
            held,
        )

    def _at(
        self, policy: Policy
    ) -> tuple[Floats, Floats, Floats, tuple[float | None, float | None]]:
        effect = self._held(policy, self.target.cases)
        cost = np.empty(0)
        done: tuple[float | None, float | None] = (None, None)
        if self.texts and self.model is not None:
            runtime = self.bench.runtime(self.model)
            runtime.take_up(runtime.compiled([policy]), policy=policy.file)
            cost = nll(runtime, self.texts)
        held = self._held(policy, self.collateral.cases)
        if self.shift is not None:
            done = self.shift.under(ProgramSource(policy, self.shape).program, self.rule)
            if policy.mode is Mode.OFF:
                done = (0.0, None if self.shift.saes is None else 0.0)
        return effect, cost, held, done

    def _held(self, policy: Policy, cases: Sequence[Case]) -> Floats:
        """1.0 for each case of which every expectation holds."""
        return np.array([
            float(all(judge(e, outcome) is None for e in case.expectations))
            for case in cases
            for outcome in [self.bench.outcome(policy, case)]
        ])  # fmt: skip

    def _summary(
        self,
        strengths: Floats,
        effect: Floats,
        cost: Floats | None,
        held: Floats | None,
        others: Sequence[tuple[float | None, float | None]],
    ) -> tuple[Measured, ...]:
        rng = np.random.default_rng(self.seed)
        effects = resampled(effect, rng)
        extra = None if cost is None else cost - cost[0]
        extras = None if extra is None else np.exp(resampled(extra, rng))
        return tuple(
            Measured(
                float(strength),
                float(effect[i].mean()),
                interval(effects[i]),
                None if extra is None else math.exp(float(extra[i].mean())),
                None if extras is None else interval(extras[i]),
                None if held is None else float(held[i].mean()),
                others[i][1],
                others[i][0],
            )
            for i, strength in enumerate(strengths)
        )


def sweep(
    policy: str | Path,
    target: PolicyTest,
    collateral: Collateral,
    *,
    model: str | Path | None = None,
    rule: str | None = None,
    strengths: Sequence[float] | None = None,
    saes: SaeLayers | None = None,
    contrast: Contrast | None = None,
    limits: Limits = DEFAULTS,
    root: str | Path | None = None,
    n_ctx: int = 1024,
    n_threads: int | None = None,
    seed: int = 0,
    report: Report = _quiet,
) -> Sweep:
    """Measures a rule at several strengths, beside control arms, and proposes one.

    Strength is `amplify`'s alpha; of `mute` and `scale` the share of the activation that is taken away.

    Args:
        policy: its file.
        target: cases that should hold when the rule does its work, on a model or on recordings.
        collateral: what it should leave alone.
        model: for cases with prompts that name none, and for texts.
        rule: its name, where several have a strength.
        strengths: what to try; 0 is tried in any case.
        saes: whole layers, for the arm of random features and the shift of other features.
        contrast: for the arm of the mean difference.
        limits: what the proposed strength may cost.
        root: the directory that the policies' files may lie in.
        n_ctx: most tokens of a text or case.
        n_threads: of llama.cpp.
        seed: of random features and the bootstrap.
        report: told what is being done.

    Raises:
        UsageError: what is asked for cannot be measured.
        ScopeError: policy, model, SAEs, cases or recordings are not sound, or do not fit each other.
    """
    loaded = load_policy(policy, root=root)
    text = decode(Path(policy).read_bytes(), str(policy))
    swept = swept_rule(loaded, rule)
    if model is None and collateral.texts:
        raise UsageError(
            "perplexity needs a model", hint="Give --model, or a recording as --collateral"
        )
    grid = grid_of(swept, strengths)
    with tempfile.TemporaryDirectory(prefix="scope-sweep-") as name, ExitStack() as stack:
        folder = Path(name)
        notes: list[str] = []
        report("reading texts")
        shape, texts, recorded, direction = read_before(
            loaded, swept, collateral, contrast, model, n_ctx, n_threads, notes
        )
        own = frozenset((each.layer, each.id) for each in features_of(loaded, swept))
        shift = FeatureShift(saes, recorded, own) if recorded else None
        arms = [own_arm(text, loaded, swept)]
        arms += control_arms(
            arms[0], loaded, swept, saes, direction, shift, shape, grid, folder, seed, notes
        )
        bench = CaseBench(
            stack, Path(model) if model else None, Path(root) if root else None, n_threads, n_ctx
        )
        run = _Sweep(
            bench, target, collateral, Path(model) if model else None, texts, shift, shape,
            swept.name, seed,
        )  # fmt: skip
        progress, n_done = report("sweeping"), 0

        def tick() -> None:
            nonlocal n_done
            n_done += 1
            if progress:
                progress(n_done, len(arms) * len(grid))

        done = [run.run(arm, grid, tick) for arm in arms]
        _, effect, cost, held = done[0]
        return Sweep(
            str(policy),
            swept.name,
            str(swept.op),
            strength_of(swept),
            {arm.name: each[0] for arm, each in zip(arms, done, strict=True)},
            propose(grid, effect, cost, held, limits, seed),
            limits,
            len(target.cases),
            len(texts) or len(recorded),
            tuple(notes),
        )
