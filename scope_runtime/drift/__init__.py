"""Drift: what features do in live requests against what they did in a baseline."""

from scope_runtime.drift.baseline import Baseline, read_baseline, write_baseline
from scope_runtime.drift.compare import Criteria, Report, Verdict, compare
from scope_runtime.drift.measure import DriftError
from scope_runtime.drift.sink import DriftSink, Window

__all__ = [
    "Baseline",
    "Criteria",
    "DriftError",
    "DriftSink",
    "Report",
    "Verdict",
    "Window",
    "compare",
    "read_baseline",
    "write_baseline",
]
