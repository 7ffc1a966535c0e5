"""Events as spans and metrics: one span per request, when it has ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from scope_runtime.events import EMBEDDING_TASK, Event, Kind
from scope_runtime.metrics import families
from scope_runtime.telemetry import names as n
from scope_runtime.version import __version__

Attributes = dict[str, Any]
_SCOPE = "scope_runtime"
# Requests without an answer (logits) have events and no summary; what is kept of them makes room for others.
_MOST_OPEN = 1024


class TelemetrySink:
    """Tells a tracer and a meter. A request's span is a child of the span that its caller is in.

    Args:
        tracers: gets the spans. It and ``meters`` are shut down with the sink, which sends what waits.
        meters: gets the metrics.
    """

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self._providers = (tracers, meters)
        self._tracer = tracers.get_tracer(_SCOPE, __version__)
        meter = meters.get_meter(_SCOPE, __version__)
        self._usage = meter.create_histogram(
            n.TOKEN_USAGE,
            "{token}",
            "Tokens of prompts and answers.",
            explicit_bucket_boundaries_advisory=n.TOKEN_BUCKETS,
        )
        self._duration = meter.create_histogram(
            n.DURATION,
            "s",
            families.DURATION.help,
            explicit_bucket_boundaries_advisory=families.DURATION_BUCKETS,
        )
        self._first_token = meter.create_histogram(
            n.FIRST_TOKEN,
            "s",
            families.FIRST_TOKEN.help,
            explicit_bucket_boundaries_advisory=families.FIRST_TOKEN_BUCKETS,
        )
        self._per_token = meter.create_histogram(
            n.PER_TOKEN,
            "s",
            families.PER_TOKEN.help,
            explicit_bucket_boundaries_advisory=families.PER_TOKEN_BUCKETS,
        )
        self._interventions = meter.create_counter(
            n.INTERVENTIONS, "{token}", families.INTERVENTIONS.help
        )
        self._alerts = meter.create_counter(n.ALERTS, "{alert}", families.ALERT_TRANSITIONS.help)
        self._lock = threading.Lock()
        self._open: dict[str, list[Event]] = {}
        self._model = "unknown"

    def write(self, events: Sequence[Event]) -> None:
        """Counts them; a request's summary makes its span."""
        for event in events:
            if event.kind is Kind.RUNTIME and event.what == "start":
                self._model = Path(str(event.detail.get("model", "unknown"))).stem
            elif event.kind is Kind.REQUEST and event.what == "summary":
                self._request(event)
            elif event.kind in (Kind.REQUEST, Kind.ALERT) and event.request_id is not None:
                self._count(event)
                with self._lock:
                    while len(self._open) >= _MOST_OPEN and event.request_id not in self._open:
                        del self._open[next(iter(self._open))]
                    self._open.setdefault(event.request_id, []).append(event)

    def close(self) -> None:
        """Sends what waits, for as long as the exporters try. Safe to call twice."""
        for provider in self._providers:
            shutdown = getattr(provider, "shutdown", None)  # the API's providers have none
            if shutdown is not None:
                shutdown()
        self._providers = ()  # type: ignore[assignment]

    def _count(self, event: Event) -> None:
        named = _named(event)
        if event.what == "rule":
            mode = {n.OP: event.op or "", n.MODE: event.mode or ""}
            self._interventions.add(event.detail["n_fired"], named | mode)
        elif event.what in ("firing", "resolved"):
            state = {n.STATE: event.what, n.SEVERITY: str(event.detail.get("severity", ""))}
            self._alerts.add(1, named | state)

    def _request(self, event: Event) -> None:
        with self._lock:
            before = self._open.pop(event.request_id or "", [])
        detail, failed = event.detail, event.detail["finish_reason"] == "error"
        timing: Mapping[str, float] = detail.get("timing", {})
        vector = detail.get("task") == EMBEDDING_TASK
        operation = n.EMBEDDING_OPERATION if vector else n.OPERATION
        shared: Attributes = {
            n.OPERATION_NAME: operation,
            n.PROVIDER_NAME: n.PROVIDER,
            n.REQUEST_MODEL: self._model,
        }
        if failed:
            shared[n.ERROR_TYPE] = "_OTHER"
        self._measure(detail, timing, shared)
        end_s = event.time
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            kind=SpanKind.INTERNAL,
            attributes=shared | _attributes(event, before),
            start_time=_ns(end_s - timing.get("duration_s", 0.0)),
        )
        for each in before:
            _note(span, each)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(end_s))

    def _measure(
        self, detail: Mapping[str, Any], timing: Mapping[str, float], shared: Attributes
    ) -> None:
        n_answer = detail["n_answer"]
        self._usage.record(detail["n_prompt"], shared | {n.TOKEN_TYPE: "input"})
        self._usage.record(n_answer, shared | {n.TOKEN_TYPE: "output"})
        if not timing:
            return
        self._duration.record(timing["duration_s"], shared)
        if n_answer >= 1:
            self._first_token.record(timing["queue_s"] + timing["prompt_s"], shared)
        if n_answer >= 2:
            self._per_token.record(timing["generation_s"] / (n_answer - 1), shared)


def _named(event: Event) -> Attributes:
    return {n.POLICY: str(event.detail.get("policy", "")), n.RULE: event.rule or ""}


def _attributes(event: Event, before: Sequence[Event]) -> Attributes:
    """Of a span: numbers, names, digests; nothing that the request said or was answered."""
    detail = event.detail
    rules = [e for e in before if e.what == "rule" and e.detail["n_fired"]]
    out: Attributes = {
        n.RESPONSE_ID: event.request_id or "",
        n.FINISH_REASONS: (detail["finish_reason"],),
        n.INPUT_TOKENS: detail["n_prompt"],
        n.CACHED_TOKENS: detail["n_reused"],
        n.OUTPUT_TOKENS: detail["n_answer"],
        n.REVISIONS: tuple(span.revision for span in event.revisions),
        n.RULES: tuple(f"{e.detail.get('policy', '')}/{e.rule}" for e in rules),
        n.DOSE: max([0.0, *(e.detail["dose"]["max"] or 0.0 for e in rules)]),
        n.EXEMPTED: tuple(detail.get("exempted", ())),
        n.MODEL_DIGEST: detail["digests"]["model"],
    }
    sampling = detail.get("sampling", {})
    for key, name in n.REQUEST_PARAMETERS.items():
        if sampling.get(key) is not None:
            out[name] = sampling[key]
    return out


def _note(span: Span, event: Event) -> None:
    """An alert, or the dose limit, at its own time on the span."""
    if event.kind is not Kind.ALERT:
        return
    attributes: Attributes = {
        n.STATE: event.what,
        n.SEVERITY: str(event.detail.get("severity", "")),
        n.POSITION: event.detail.get("position", -1),
    }
    if event.rule is not None:
        attributes |= _named(event)
    span.add_event(n.ALERT_EVENT, attributes, timestamp=_ns(event.time))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
