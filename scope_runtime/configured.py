"""A Runtime as its ``scope.yaml`` asks for it: every section becomes what it configures, here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scope_runtime.alerts.manager import AlertManager
from scope_runtime.audit.segments import LogFiles
from scope_runtime.drift import Criteria, DriftSink, Window, read_baseline
from scope_runtime.drift.sources import newest
from scope_runtime.errors import UsageError
from scope_runtime.events import Event, Sink
from scope_runtime.lifecycle.config import RuntimeConfig
from scope_runtime.lifecycle.listen import tcp_socket
from scope_runtime.metrics.collect import alerts_reader, drift_reader
from scope_runtime.runtime import Runtime
from scope_runtime.telemetry import open_telemetry

if TYPE_CHECKING:
    from scope_runtime.lifecycle import Hosted


class Hosting(Protocol):
    """A model that follows policies: a Runtime, or one in a llama-server."""

    @property
    def hosted(self) -> Hosted: ...

    def write(self, events: Sequence[Event]) -> None: ...

    def close(self) -> None: ...


T = TypeVar("T", bound=Hosting)


def configured(config: RuntimeConfig, *more: Sink) -> Runtime:
    """Opens the model under its policies, with every sink that the configuration names.

    Args:
        more: where else events go.

    Raises:
        ScopeError: it cannot start; nothing is left open.
    """
    return opened_by(config, _embedded, *more)


def opened_by(
    config: RuntimeConfig, opener: Callable[[RuntimeConfig, Sequence[Sink]], T], *more: Sink
) -> T:
    """As ``configured``, whatever the model runs in.

    Args:
        opener: opens the model with these sinks.
    """
    with ExitStack() as undo:
        # Taken before the model is loaded: a port that somebody has need not wait for gigabytes of weights.
        at = None
        if config.metrics is not None:
            at = undo.enter_context(tcp_socket(config.metrics))
        drift = _drift(config)
        telemetry = None
        if config.telemetry is not None:
            telemetry = open_telemetry(config.telemetry)
            undo.callback(telemetry.close)
        alerts = AlertManager(config.alerts)
        undo.callback(alerts.close)
        if config.audit is not None and config.alerts.state is not None:
            alerts.catch_up(newest(LogFiles(Path(config.audit.path)), 1))
        runtime = opener(config, [*_sinks(drift, telemetry, alerts), *more])
        undo.callback(runtime.close)
        alerts.bind(runtime.write)
        runtime.hosted.lifecycle.alerts = alerts.status
        runtime.hosted.metrics.read(alerts_reader(alerts))
        runtime.hosted.configured_by(config, lambda new: alerts.configure(new.alerts))
        if drift is not None:
            runtime.hosted.metrics.read(drift_reader(drift))
            # The alerts' state does not say what holds them: drift itself does, out of the log.
            alerts.write(drift.standing())
            drift.start(runtime.write)
        if at is not None:
            runtime.hosted.serve_metrics(at)
        undo.pop_all()
    return runtime


def _embedded(config: RuntimeConfig, sinks: Sequence[Sink]) -> Runtime:
    return Runtime(
        config.model,
        config.policy,
        policy_root=config.policy_root,
        watch=config.options,
        state=config.state,
        control=config.control,
        audit=config.audit,
        sinks=sinks,
        n_ctx=config.n_ctx,
        n_parallel=config.n_parallel,
        n_threads=config.n_threads,
        n_gpu_layers=config.n_gpu_layers,
        embeddings=config.embeddings,
    )


def _sinks(*configured: Sink | None) -> list[Sink]:
    """Where events go beside memory and log; each section of the configuration adds its own."""
    return [sink for sink in configured if sink is not None]


def _drift(config: RuntimeConfig) -> DriftSink | None:
    """The watch on drift, its window filled from the audit log of before."""
    asked = config.drift
    if asked is None:
        return None
    baseline = read_baseline(asked.baseline)
    window = {"requests": asked.requests, "hours": asked.hours, "looks": asked.looks}
    criteria = {
        "min_requests": asked.min_requests,
        "false_alarm_rate": asked.false_alarm_rate,
        "psi": asked.psi,
    }
    try:
        sink = DriftSink(baseline, Criteria(**_said(criteria)), Window(**_said(window)))
    except UsageError as error:
        error.location, error.key = config.where("spec.drift"), "spec.drift"
        raise
    if config.audit is not None:
        sink.restore(newest(LogFiles(Path(config.audit.path)), sink.window.requests))
    return sink


def _said(settings: dict[str, Any]) -> dict[str, Any]:
    """What was said; the rest has its defaults where it is defined."""
    return {key: value for key, value in settings.items() if value is not None}
