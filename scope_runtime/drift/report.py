"""A report as JSON-ready data, and a distribution as a few characters."""

from __future__ import annotations

from typing import Any

from scope_runtime.drift.compare import Finding, Report
from scope_runtime.drift.statistics import Stability

_BARS = "▁▂▃▄▅▆▇█"


def report_data(report: Report) -> dict[str, Any]:
    """What ``scope drift report --json`` prints."""
    return {
        "verdict": str(report.verdict),
        "false_alarm_rate": report.criteria.false_alarm_rate,
        "min_requests": report.criteria.min_requests,
        "psi": report.criteria.psi,
        "requests": {"baseline": report.n_baseline, "window": report.n_window},
        "since": report.since,
        "until": report.until,
        "rules": [
            {
                "policy": finding.rule.policy,
                "rule": finding.rule.rule,
                "features": list(finding.rule.features),
                **finding_data(finding),
            }
            for finding in report.findings
        ],
        "notes": list(report.notes),
    }


def finding_data(finding: Finding) -> dict[str, Any]:
    """A comparison as JSON-ready data, for events and for ``--json``."""
    return {
        "verdict": str(finding.verdict),
        "requests": {"baseline": finding.n_baseline, "window": finding.n_window},
        "psi": rounded(finding.psi),
        "psi_by_chance": rounded(finding.psi_by_chance),
        "p": rounded(finding.p),
        "measures": {
            m.name: {
                "baseline": rounded(m.baseline),
                "window": rounded(m.window),
                "psi": rounded(m.psi),
                "p": rounded(m.p),
                "edges": [rounded(edge) for edge in m.stability.edges.tolist()],
                "counts": {
                    "baseline": m.stability.baseline.tolist(),
                    "window": m.stability.window.tolist(),
                },
            }
            for m in finding.measures
        },
    }


def bars(stability: Stability) -> str:
    """The window's share in each bin of the baseline, in which the baseline's requests lie about evenly."""
    shares = stability.window / max(int(stability.window.max()), 1)
    return "".join(" " if not share else _BARS[round(share * 7)] for share in shares.tolist())


def rounded(value: float | None) -> float | None:
    """Six digits, as in events."""
    return None if value is None else float(f"{value:.6g}")
