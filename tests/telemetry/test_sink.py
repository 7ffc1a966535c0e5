"""Spans and metrics, through the SDK's own in-memory exporters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.trace import StatusCode

from scope_runtime import Runtime
from scope_runtime.errors import UsageError
from scope_runtime.events import Event, Kind
from scope_runtime.llama import library
from scope_runtime.telemetry import TelemetryOptions, names, open_telemetry
from scope_runtime.telemetry.sink import TelemetrySink
from tests.conftest import Tiny

library.load()
NAMES = {row.name for row in names.TABLE}
PROMPT = [5, 17, 33, 80, 41, 60, 77]


@dataclass(frozen=True, slots=True)
class Told:
    """What a sink told."""

    tracers: TracerProvider
    sink: TelemetrySink
    spans: InMemorySpanExporter
    reader: InMemoryMetricReader

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def told() -> Told:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    return Told(tracers, TelemetrySink(tracers, MeterProvider([reader])), spans, reader)


@pytest.fixture
def runtime(tiny: Tiny, told: Told) -> Iterator[Runtime]:
    with Runtime(tiny.model, tiny.policy, sinks=[told.sink], n_ctx=256, n_threads=1) as runtime:
        yield runtime


def test_names_are_those_of_the_conventions() -> None:
    """Against the package that is generated from them."""
    known = {
        value
        for module in (gen_ai_attributes, gen_ai_metrics, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    for row in names.TABLE:
        assert row.name in known or row.name.startswith("scope."), row
    assert len(NAMES) == len(names.TABLE)


def test_a_request_is_one_span_with_what_was_done_in_it(runtime: Runtime, told: Told) -> None:
    answer = runtime.generate(
        PROMPT, max_tokens=3, temperature=0.5, seed=9, request_id="r-9", labels={"tenant": "acme"}
    )
    (span,) = told.spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert span.name == f"text_completion {Path(str(runtime_model(runtime))).stem}"
    assert attributes["gen_ai.response.id"] == "r-9"
    assert attributes["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert attributes["gen_ai.usage.output_tokens"] == len(answer.tokens)
    assert attributes["gen_ai.response.finish_reasons"] == (answer.finish_reason,)
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.seed"] == 9
    assert attributes["scope.revisions"] == (runtime.program.revision,)
    assert "tiny/push" in attributes["scope.rules"]  # type: ignore[operator]
    doses = [e.detail["dose"]["max"] for e in answer.report if e.what == "rule"]
    assert attributes["scope.dose.max"] == max(doses) > 0
    assert set(attributes) <= NAMES
    alerts = [e for e in answer.report if e.what in ("firing", "resolved")]
    assert [(e.name, dict(e.attributes or {})["scope.alert.state"]) for e in span.events] == [
        ("scope.alert", event.what) for event in alerts
    ]
    assert alerts
    duration_s = answer.report[-1].detail["timing"]["duration_s"]
    assert (span.end_time or 0) - (span.start_time or 0) == pytest.approx(
        duration_s * 1e9, abs=2000
    )
    assert span.status.status_code is StatusCode.UNSET


def runtime_model(runtime: Runtime) -> object:
    (start,) = [e for e in runtime.events() if e.what == "start"]
    return start.detail["model"]


def test_a_span_is_the_child_of_the_span_that_its_caller_is_in(
    runtime: Runtime, told: Told
) -> None:
    with told.tracers.get_tracer("application").start_as_current_span("job") as job:
        runtime.generate(PROMPT, max_tokens=1)
    span, parent = told.spans.get_finished_spans()
    assert parent.name == "job"
    assert span.parent is not None
    assert span.parent.span_id == job.get_span_context().span_id


def everything(span: ReadableSpan) -> str:
    return span.to_json()


def test_contents_and_labels_are_never_told(tiny: Tiny, told: Told, tmp_path: Path) -> None:
    """Even where the policy keeps prompts and outputs for the audit log."""
    event = Event(
        Kind.REQUEST,
        "summary",
        2.0,
        request_id="r",
        labels={"tenant": "secret-tenant"},
        detail={
            "n_prompt": 1,
            "n_answer": 1,
            "n_reused": 0,
            "finish_reason": "stop",
            "digests": {"model": "sha256:0"},
            "prompt": "secret-prompt",
            "output": "secret-output",
            "sampling": {"seed": 1, "stop": ["secret-stop"]},
        },
    )
    told.sink.write([event])
    (span,) = told.spans.get_finished_spans()
    data = told.reader.get_metrics_data()
    assert "secret" not in everything(span)
    assert data is not None
    assert "secret" not in data.to_json()


def test_metrics_are_those_of_the_conventions_and_bounded(runtime: Runtime, told: Told) -> None:
    answers = [runtime.generate(PROMPT, max_tokens=n, request_id=f"id-{n}") for n in (2, 4)]
    usage = {
        dict(point.attributes)["gen_ai.token.type"]: point
        for point in told.points("gen_ai.client.token.usage")
    }
    assert usage["input"].sum == 2 * len(PROMPT)
    assert usage["output"].sum == sum(len(answer.tokens) for answer in answers)
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        (point,) = told.points(f"gen_ai.server.{name}")
        assert isinstance(point, HistogramDataPoint)
        assert point.count == 2
        assert point.sum > 0
    acted: dict[str, int] = {}
    for answer in answers:
        for event in answer.report:
            if event.what == "rule" and event.rule is not None:
                acted[event.rule] = acted.get(event.rule, 0) + event.detail["n_fired"]
    counted = {
        dict(point.attributes)["scope.rule"]: point.value
        for point in told.points("scope.interventions")
    }
    assert counted == acted
    data = told.reader.get_metrics_data()
    assert data is None or "id-2" not in data.to_json()


def test_a_request_that_failed_has_an_error_span(told: Told) -> None:
    detail = {
        "n_prompt": 1,
        "n_answer": 0,
        "n_reused": 0,
        "finish_reason": "error",
        "digests": {"model": "sha256:0"},
    }
    told.sink.write([Event(Kind.REQUEST, "summary", 1.0, request_id="r", detail=detail)])
    (span,) = told.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "_OTHER"


def test_requests_without_an_answer_do_not_pile_up(told: Told) -> None:
    for number in range(3000):
        detail = {"policy": "p", "severity": "info", "position": 0}
        told.sink.write(
            [Event(Kind.ALERT, "firing", 1.0, request_id=f"r{number}", rule="w", detail=detail)]
        )
    assert len(told.sink._open) == 1024
    assert told.points("scope.alerts")[0].value == 3000


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith("scope_runtime.telemetry.")]:
        if not name.endswith(("names", "options")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(UsageError) as refused:
        open_telemetry(TelemetryOptions("http://127.0.0.1:1"))
    assert 'pip install "scope-runtime[otel]"' in str(refused.value)
