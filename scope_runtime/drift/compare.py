"""A baseline against a window: per rule how far they lie apart, and whether that is drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scope_runtime.drift.measure import MEASURES, DriftError, Sample, Watched, describe
from scope_runtime.drift.statistics import Floats, Stability, p_values, stability
from scope_runtime.errors import UsageError
from scope_runtime.types import StrEnum

MAJOR_PSI = 0.25
_RATE_FACTOR = 1.5


class Verdict(StrEnum):
    """What a comparison came to; the exit codes of ``scope drift report``."""

    STABLE = "stable"
    SMALL = "small"
    """A difference that chance does not explain, but too small to matter."""
    DRIFT = "drift"
    INSUFFICIENT = "insufficient"
    """Too few requests to say anything."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """When a difference is drift: it is no chance, and large enough to matter.

    Attributes:
        min_requests: fewer requests with the rule, in baseline or window, are not judged.
        false_alarm_rate: chance that a report names any rule at all while nothing changed.
        psi: population stability index from which on a difference matters. Below 0.1 counts as none and above 0.25
            as major by convention. A firing rate that changed by half matters too: of a feature that is seldom
            active the index hardly moves.
        looks: how many reports share the rate; one live request is in so many of them.
        seed: of the permutations, so that the same data give the same report.
    """

    min_requests: int = 100
    false_alarm_rate: float = 0.01
    psi: float = 0.1
    looks: int = 1
    seed: int = 0

    @property
    def alpha(self) -> float:
        """The level of one look."""
        return self.false_alarm_rate / self.looks

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        if self.min_requests < 20:
            raise UsageError(
                "min_requests is too small", found=str(self.min_requests), expected="20 or more"
            )
        if not 1e-4 <= self.false_alarm_rate <= 0.5:
            raise UsageError(
                "false_alarm_rate is out of range",
                found=str(self.false_alarm_rate),
                expected="0.0001 to 0.5",
            )
        if not 0 <= self.psi < 100:
            raise UsageError("psi is out of range", found=str(self.psi), expected="0 to 100")


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One measurement of a rule's requests, in the baseline and in the window.

    Attributes:
        name: of MEASURES.
        baseline, window: means over requests.
        p: chance that any measurement of any rule would differ as much, were nothing different.
    """

    name: str
    baseline: float
    window: float
    stability: Stability
    p: float

    @property
    def psi(self) -> float:
        return self.stability.psi


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """One rule, compared.

    Attributes:
        n_baseline, n_window: requests that got it.
        measures: in the order of MEASURES; empty where there were too few requests.
        psi_by_chance: what the index comes to by chance alone in samples of these sizes, roughly.
    """

    rule: Watched
    verdict: Verdict
    n_baseline: int
    n_window: int
    measures: tuple[Measured, ...] = ()
    psi_by_chance: float = 0.0

    @property
    def worst(self) -> Measured | None:
        """The measurement that says most: least likely by chance, then furthest apart."""
        return min(self.measures, key=lambda m: (m.p, -m.psi), default=None)

    @property
    def psi(self) -> float | None:
        return max((m.psi for m in self.measures), default=None)

    @property
    def p(self) -> float | None:
        return min((m.p for m in self.measures), default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Every rule of a baseline, compared.

    Attributes:
        n_baseline, n_window: requests in all.
        since, until: when the window's first and last request ended; None where it is empty.
        notes: sentences that a person should read before believing the rest.
    """

    findings: tuple[Finding, ...]
    n_baseline: int
    n_window: int
    since: float | None
    until: float | None
    criteria: Criteria
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Drift if any rule drifted; else insufficient if any could not be judged."""
        found = {finding.verdict for finding in self.findings}
        for verdict in (Verdict.DRIFT, Verdict.INSUFFICIENT, Verdict.SMALL):
            if verdict in found:
                return verdict
        return Verdict.STABLE if found else Verdict.INSUFFICIENT


def compare(
    baseline: Sample, window: Sample, criteria: Criteria, *, notes: Sequence[str] = ()
) -> Report:
    """Compares what the rules of the baseline measured in both.

    Raises:
        DriftError: the two are of different models or packs, or a rule measures something else now.
    """
    check_comparable(baseline, window)
    pairs = {rule: _pair(baseline, window, rule) for rule in baseline.measured}
    judged = {
        rule: pair
        for rule, pair in pairs.items()
        if min(_n(pair[0]), _n(pair[1])) >= criteria.min_requests
    }
    columns = [(a[:, i], b[:, i]) for a, b in judged.values() for i in range(len(MEASURES))]
    ps = p_values(columns, alpha=criteria.alpha, seed=criteria.seed)
    by_rule = dict(zip(judged, ps.reshape(-1, len(MEASURES)), strict=True))
    findings = tuple(
        _finding(rule, pair, by_rule.get(rule), criteria) for rule, pair in pairs.items()
    )
    times = window.times
    return Report(
        findings,
        len(baseline.times),
        len(times),
        float(times[0]) if len(times) else None,
        float(times[-1]) if len(times) else None,
        criteria,
        (*notes, *_notes(baseline, window)),
    )


def check_comparable(baseline: Sample, window: Sample) -> None:
    """Raises DriftError if the samples measure different things."""
    if not len(window.times):
        return
    if baseline.model != window.model:
        raise DriftError(
            "the baseline is of another model",
            found=window.model or "none",
            expected=baseline.model or "none",
            hint="Make a baseline of this one",
        )
    if not (baseline.packs <= window.packs or window.packs <= baseline.packs):
        raise DriftError(
            "the baseline is of other feature packs",
            found=", ".join(sorted(window.packs)),
            expected=", ".join(sorted(baseline.packs)),
            hint="Make a baseline of these",
        )
    for rule in baseline.measured:
        other = next((mine for mine in window.measured if mine.same_rule(rule)), None)
        if other is not None and other.parts() != rule.parts():
            raise DriftError(
                f"{rule.name} measures something else than in the baseline",
                found=describe(other),
                expected=describe(rule),
                hint="Make a new baseline",
            )


def _pair(baseline: Sample, window: Sample, rule: Watched) -> tuple[Floats, Floats]:
    other = window.find(rule)
    absent = np.full((len(window.times), len(MEASURES)), np.nan)
    return baseline.measured[rule], absent if other is None else window.measured[other]


def _n(values: Floats) -> int:
    return int((~np.isnan(values[:, 0])).sum())


def _finding(
    rule: Watched, pair: tuple[Floats, Floats], ps: Floats | None, criteria: Criteria
) -> Finding:
    n_baseline, n_window = map(_n, pair)
    if ps is None:
        return Finding(rule, Verdict.INSUFFICIENT, n_baseline, n_window)
    a, b = (values[~np.isnan(values[:, 0])] for values in pair)
    measures = tuple(
        Measured(
            name,
            float(a[:, i].mean()),
            float(b[:, i].mean()),
            stability(a[:, i], b[:, i]),
            float(ps[i]),
        )
        for i, name in enumerate(MEASURES)
    )
    no_chance = [m for m in measures if m.p <= criteria.alpha]
    verdict = Verdict.STABLE
    if no_chance:
        matters = any(m.psi >= criteria.psi or _rate_changed(m) for m in no_chance)
        verdict = Verdict.DRIFT if matters else Verdict.SMALL
    by_chance = max(len(m.stability.baseline) - 1 for m in measures) * (
        1 / n_baseline + 1 / n_window
    )
    return Finding(rule, verdict, n_baseline, n_window, measures, by_chance)


def _rate_changed(measured: Measured) -> bool:
    low, high = sorted((measured.baseline, measured.window))
    return measured.name == "rate" and high > _RATE_FACTOR * low


def _notes(baseline: Sample, window: Sample) -> Iterator[str]:
    if len(window.times) and not window.revisions <= baseline.revisions:
        yield (
            "the policies' revision is not the baseline's: what differs may come from the policies "
            "rather than from the traffic"
        )
    new = [rule for rule in window.measured if baseline.find(rule) is None]
    if new:
        yield f"not in the baseline: {', '.join(rule.name for rule in new)}"
