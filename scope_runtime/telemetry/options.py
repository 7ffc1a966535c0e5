"""Where telemetry goes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.errors import Location, UsageError

if TYPE_CHECKING:
    from scope_runtime.telemetry.sink import TelemetrySink

INSTALL = 'pip install "scope-runtime[otel]"'


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """Where to send spans and metrics, over OTLP and HTTP.

    Attributes:
        endpoint: the collector's base address; ``/v1/traces`` and ``/v1/metrics`` are under it.
        headers_file: file with headers for each request, ``name=value`` one a line; for keys.
        headers_env: environment variable with them, by commas: the form of OTEL_EXPORTER_OTLP_HEADERS.
        service: ``service.name``.
        interval_s: how often metrics are sent.
    """

    endpoint: str
    headers_file: Path | None = None
    headers_env: str | None = None
    service: str = "scope-runtime"
    interval_s: float = 60.0

    def headers(self) -> dict[str, str]:
        """What is sent with each request. Raises UsageError, which never shows a value."""
        where = Location(str(self.headers_file)) if self.headers_file is not None else None
        if self.headers_file is not None:
            try:
                parts = self.headers_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    "the headers cannot be read", location=where, found=type(error).__name__
                ) from None
        elif self.headers_env is not None:
            if self.headers_env not in os.environ:
                raise UsageError(f"there is no environment variable {self.headers_env}")
            parts = os.environ[self.headers_env].split(",")
        else:
            return {}
        out = {}
        for number, part in enumerate(parts, 1):
            name, given, value = part.strip().partition("=")
            if not part.strip():
                continue
            if not given or not name.strip():
                raise UsageError(f"header {number} is none", location=where, expected="name=value")
            out[name.strip().lower()] = value.strip()
        return out


def open_telemetry(options: TelemetryOptions) -> TelemetrySink:
    """A sink that sends to the collector; what it cannot deliver is lost, and nothing waits for it.

    Raises:
        UsageError: OpenTelemetry is not installed, or the headers are not sound.
    """
    headers = options.headers()
    try:
        from scope_runtime.telemetry.export import otlp_sink
    except ImportError as error:
        raise UsageError(
            "OpenTelemetry is not installed", found=f"no module {error.name}", hint=INSTALL
        ) from None
    return otlp_sink(options, headers)
