"""Spans and metrics for OpenTelemetry; needs the extra ``otel``. See docs/observability.md."""

from scope_runtime.telemetry.options import TelemetryOptions, open_telemetry

__all__ = ["TelemetryOptions", "open_telemetry"]
