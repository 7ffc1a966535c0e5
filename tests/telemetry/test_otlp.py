"""A scope.yaml, a live runtime, and a real receiver of OTLP over HTTP that decodes what comes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from scope_runtime.configured import configured
from scope_runtime.errors import PolicyErrors, UsageError
from scope_runtime.lifecycle.config import load_config
from scope_runtime.telemetry import TelemetryOptions
from tests.conftest import Tiny
from tests.lifecycle.conftest import PROMPT, make_site

CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: 256, threads: 1}}
  policy: {{path: policies, poll_s: 600}}
  opentelemetry: {telemetry}
"""


class Receiver(ThreadingHTTPServer):
    """What a collector's OTLP receiver does: decodes, and keeps."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.keys: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["Content-Type"] == "application/x-protobuf"
        self.server.keys.add(self.headers.get("api-key"))
        if self.path == "/v1/traces":
            self.server.traces.append(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
        else:
            assert self.path == "/v1/metrics"
            self.server.metrics.append(ExportMetricsServiceRequest.FromString(body))
            answer = ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """A test has no use for it."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def config_file(tiny: Tiny, folder: Path, telemetry: str) -> Path:
    path = folder / "scope.yaml"
    path.write_text(CONFIG.format(model=tiny.model, telemetry=telemetry), encoding="utf-8")
    return path


def test_spans_and_metrics_arrive_with_the_headers(
    receiver: Receiver, tiny: Tiny, tmp_path: Path
) -> None:
    make_site(tiny, tmp_path)
    (tmp_path / "headers").write_text("api-key=k-123\n\n", encoding="utf-8")
    telemetry = f"{{endpoint: '{receiver.endpoint}/', headers_from: {{file: headers}}, service: s}}"
    with configured(load_config(config_file(tiny, tmp_path, telemetry))) as runtime:
        answer = runtime.generate(PROMPT, max_tokens=2, request_id="over-the-wire")
    # Closing the runtime has sent what waited.
    assert receiver.keys == {"k-123"}
    (resource,) = [each for request in receiver.traces for each in request.resource_spans]
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert named["service.name"] == "s"
    (span,) = [span for scope in resource.scope_spans for span in scope.spans]
    attributes = {a.key: a.value for a in span.attributes}
    assert attributes["gen_ai.response.id"].string_value == "over-the-wire"
    assert attributes["gen_ai.usage.output_tokens"].int_value == len(answer.tokens)
    names = {
        metric.name
        for request in receiver.metrics
        for each in request.resource_metrics
        for scope in each.scope_metrics
        for metric in scope.metrics
    }
    assert {"gen_ai.server.request.duration", "scope.interventions"} <= names


def test_a_collector_that_is_gone_costs_no_answer(
    receiver: Receiver, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_site(tiny, tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    telemetry = "{endpoint: 'http://127.0.0.1:1'}"
    with configured(load_config(config_file(tiny, tmp_path, telemetry))) as runtime:
        assert runtime.generate(PROMPT, max_tokens=2).finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("telemetry", "says"),
    [
        ("{endpoint: 'collector:4318'}", "an http or https address"),
        ("{headers_from: {env: X}}", 'missing key "endpoint"'),
        (
            "{endpoint: 'http://c', headers_from: {env: X, file: y}}",
            "too many keys (at spec.opentelemetry",
        ),
        ("{endpoint: 'http://c', interval_s: 0}", "a number of seconds from 1"),
    ],
)
def test_a_section_that_is_not_sound_is_refused(
    tiny: Tiny, tmp_path: Path, telemetry: str, says: str
) -> None:
    with pytest.raises(PolicyErrors) as refused:
        load_config(config_file(tiny, tmp_path, telemetry))
    assert says in str(refused.value)


def test_headers_come_from_a_file_or_the_environment_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTLP_KEYS", "Authorization=Bearer a=b, x-tenant=acme")
    options = TelemetryOptions("http://c", headers_env="OTLP_KEYS")
    assert options.headers() == {"authorization": "Bearer a=b", "x-tenant": "acme"}
    with pytest.raises(UsageError, match="no environment variable MISSING"):
        TelemetryOptions("http://c", headers_env="MISSING").headers()
    bad = tmp_path / "headers"
    bad.write_text("api-key=1\nsecret\n", encoding="utf-8")
    with pytest.raises(UsageError, match="header 2 is none") as refused:
        TelemetryOptions("http://c", headers_file=bad).headers()
    assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match="the headers cannot be read"):
        TelemetryOptions("http://c", headers_file=tmp_path / "none").headers()
