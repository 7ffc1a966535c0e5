"""Baseline and window as histograms: one row a rule, one column a measurement. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scope_runtime.drift.compare import Finding, Report, Verdict
from scope_runtime.drift.measure import MEASURES, DriftError, Sample
from scope_runtime.drift.statistics import Floats
from scope_runtime.errors import UsageError
from scope_runtime.files import written_whole

MOST_RULES = 12
_FORMATS = ("png", "svg", "pdf")
_TITLES = {"rate": "firing rate", "mean": "mean activation", "max": "max activation"}
_BASELINE, _WINDOW, _ALARM = "#8a8f98", "#2563a8", "#b3261e"


def plot(path: str | Path, report: Report, baseline: Sample, window: Sample) -> int:
    """Draws the rules that say most, drifting ones first; returns how many.

    Raises:
        UsageError: matplotlib is not installed, or the file's ending names no picture.
        DriftError: the file cannot be written.
    """
    form = Path(path).suffix.removeprefix(".")
    if form not in _FORMATS:
        raise UsageError(
            "the plot's ending names no picture",
            found=Path(path).name,
            expected=".png, .svg or .pdf",
        )
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "a plot needs matplotlib", hint="pip install 'scope-runtime[plot]'"
        ) from None
    shown = sorted(report.findings, key=_urgency)[:MOST_RULES]
    # The same report gives the same bytes.
    with rc_context({"svg.hashsalt": "scope", "font.size": 8}):
        figure = Figure(figsize=(8.4, 0.6 + 1.75 * len(shown)), layout="constrained")
        rows = figure.subplots(len(shown), len(MEASURES), squeeze=False)
        for finding, axes in zip(shown, rows, strict=True):
            other = window.find(finding.rule)
            values = window.measured[other] if other is not None else np.empty((0, len(MEASURES)))
            for i, name in enumerate(MEASURES):
                _histograms(axes[i], baseline.measured[finding.rule][:, i], values[:, i], name)
            _words(axes, finding, report)
        rows[0][0].legend(frameon=False, fontsize=7, handlelength=1)
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[form]
        with written_whole(path, DriftError) as temporary:
            figure.savefig(temporary, format=form, dpi=110, metadata=metadata)
    return len(shown)


def _urgency(finding: Finding) -> tuple[bool, float, float]:
    return finding.verdict is not Verdict.DRIFT, finding.p or 1.0, -(finding.psi or 0.0)


def _histograms(axes: Any, a: Floats, b: Floats, name: str) -> None:
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    both = np.concatenate([a, b])
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for values, colour, filled, what in (
        (a, _BASELINE, True, f"baseline ({len(a)} requests)"),
        (b, _WINDOW, False, f"window ({len(b)} requests)"),
    ):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(
            shares,
            edges,
            fill=filled,
            color=colour,
            alpha=0.55 if filled else 1,
            lw=1.4,
            label=what,
        )
    axes.set_xlabel(_TITLES[name])
    axes.set_ylabel("share of requests" if name == MEASURES[0] else "")
    axes.spines[["top", "right"]].set_visible(False)


def _words(axes: Any, finding: Finding, report: Report) -> None:
    colour = _ALARM if finding.verdict is Verdict.DRIFT else "black"
    for one, measured in zip(axes, finding.measures, strict=False):
        alarm = measured.p <= report.criteria.alpha
        one.set_title(
            f"PSI {measured.psi:.2f}, p {measured.p:.2g}",
            loc="right",
            fontsize=7,
            color=_ALARM if alarm else "black",
        )
    axes[0].set_title(f"{finding.rule.name}: {finding.verdict}", loc="left", color=colour)
    if finding.measures:
        # The rule's name takes the place; the first measurement's figures go below it.
        first = finding.measures[0]
        axes[0].set_title("", loc="right")
        axes[0].annotate(
            f"PSI {first.psi:.2f}, p {first.p:.2g}",
            (1, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=7,
            color=_ALARM if first.p <= report.criteria.alpha else "black",
        )
