"""Metrics for Prometheus: events counted, and counters of others read at each scrape; see docs/observability.md."""

from scope_runtime.metrics.export import Metrics, exposition
from scope_runtime.metrics.sink import MetricsSink

__all__ = ["Metrics", "MetricsSink", "exposition"]
