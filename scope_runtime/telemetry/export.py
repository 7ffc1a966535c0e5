"""The SDK put together: batches of spans and, now and then, metrics, to one collector."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from scope_runtime.telemetry.options import TelemetryOptions
from scope_runtime.telemetry.sink import TelemetrySink
from scope_runtime.version import __version__


def otlp_sink(options: TelemetryOptions, headers: dict[str, str]) -> TelemetrySink:
    """A sink with providers of its own: the process's global ones stay as they are."""
    base = options.endpoint.rstrip("/")
    resource = Resource.create({"service.name": options.service, "service.version": __version__})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces", headers=headers))
    )
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{base}/v1/metrics", headers=headers),
        export_interval_millis=options.interval_s * 1e3,
    )
    return TelemetrySink(tracers, MeterProvider([reader], resource=resource))
