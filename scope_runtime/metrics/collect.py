"""What is read when somebody scrapes: counters that the hook, the lifecycle and the audit log keep themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric

from scope_runtime.metrics import families as f
from scope_runtime.metrics.families import Family

if TYPE_CHECKING:
    from scope_runtime.alerts.manager import AlertManager
    from scope_runtime.attached.runtime import AttachedRuntime
    from scope_runtime.audit.log import AuditLog
    from scope_runtime.drift import DriftSink
    from scope_runtime.lifecycle.manager import Lifecycle
    from scope_runtime.llama.engine import Engine

Samples = Sequence[tuple[tuple[str, ...], float]]
Reading = tuple[Family, Samples]
Reader = Callable[[], Iterable[Reading]]


class Readers:
    """A collector of what others count: each reader is called at every scrape, on the scraper's thread.

    Where several know of one series, their values are added.

    Args:
        registry: where it is registered until it is closed.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._readers: list[Reader] = []
        registry.register(self)

    def add(self, reader: Reader) -> None:
        with self._lock:
            self._readers.append(reader)

    def describe(self) -> Iterable[Metric]:
        """The registry asks at registration; what there is depends on what runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            read: dict[Family, dict[tuple[str, ...], float]] = {}
            for family, samples in (reading for reader in self._readers for reading in reader()):
                known = read.setdefault(family, {})
                for labels, value in samples:
                    known[labels] = known.get(labels, 0.0) + value
        for family, values in read.items():
            # A metric is called without what its samples end in.
            metric = Metric(family.name.removesuffix("_total"), family.help, str(family.type))
            for labels, value in values.items():
                metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
            yield metric

    def close(self) -> None:
        """After this nothing is read any more: what is read may be freed. Safe to call twice."""
        with self._lock:
            if not self._readers:
                return
            self._readers.clear()
        self._registry.unregister(self)


def _one(family: Family, value: float) -> Reading:
    return family, (((), value),)


def engine_reader(engine: Engine) -> Reader:
    """The hook's counters, and the requests at hand."""

    def read() -> Iterator[Reading]:
        hook = engine.context.live_hook
        stats = hook.stats
        processing, deferred = engine.load
        yield _one(f.HOOK_SECONDS, stats.hook_ns / 1e9)
        yield _one(f.HOOK_TOKENS, stats.n_columns)
        yield _one(f.HOOK_UBATCHES, stats.n_ubatches)
        yield _one(f.UNMATCHED, stats.n_unmatched)
        yield _one(f.UNSTEERED, stats.n_unsteered_columns)
        yield _one(f.EVENTS_DROPPED, hook.dropped)
        yield _one(f.PROCESSING, processing)
        yield _one(f.DEFERRED, deferred)
        yield _one(f.ACKNOWLEDGED, engine.acknowledged)
        yield (
            f.POLICY_INFO,
            [((name, revision), 1.0) for name, revision in sorted(engine.source.revisions.items())],
        )

    return read


def attached_reader(runtime: AttachedRuntime) -> Reader:
    """The hook's counters in a llama-server, and the requests at hand. While there is no server there are none."""

    def read() -> Iterator[Reading]:
        status = runtime.status
        if status is not None:
            yield _one(f.HOOK_SECONDS, status.hook_ns / 1e9)
            yield _one(f.HOOK_TOKENS, status.n_columns)
            yield _one(f.HOOK_UBATCHES, status.n_ubatches)
            yield _one(f.UNMATCHED, status.n_unmatched)
            yield _one(f.UNSTEERED, status.n_unsteered_columns)
            yield _one(f.EVENTS_DROPPED, status.n_dropped)
        yield _one(f.PROCESSING, runtime.n_running)
        yield _one(f.ACKNOWLEDGED, runtime.acknowledged)
        yield (
            f.POLICY_INFO,
            [((name, rev), 1.0) for name, rev in sorted(runtime.source.revisions.items())],
        )

    return read


def queue_reader(n_waiting: Callable[[], int]) -> Reader:
    """Requests that wait before they reach the engine."""

    def read() -> Iterator[Reading]:
        yield _one(f.DEFERRED, n_waiting())

    return read


def lifecycle_reader(lifecycle: Lifecycle) -> Reader:
    """How the policies fare."""

    def read() -> Iterator[Reading]:
        last, counts = lifecycle.last, lifecycle.counts
        yield _one(f.RELOAD_SUCCESS, last is None or last.error is None)
        yield _one(f.LAST_RELOAD, 0.0 if last is None else last.time)
        yield f.RELOADS, ((("ok",), counts.ok), (("refused",), counts.refused))
        yield _one(f.OFF, lifecycle.switch is not None)
        yield _one(f.HELD, lifecycle.held)
        if lifecycle.feed is not None:
            fed = lifecycle.feed.status()
            yield _one(f.FETCH_SUCCESS, fed.error is None)
            yield f.FETCHES, ((("ok",), fed.ok), (("failed",), fed.failed))
            yield _one(f.LAST_FETCH, fed.last_good)

    return read


def audit_reader(log: AuditLog) -> Reader:
    """How the audit log fares."""

    def read() -> Iterator[Reading]:
        status = log.status
        yield _one(f.AUDIT_RECORDS, status.records_written)
        yield _one(f.AUDIT_DROPPED, status.dropped)
        yield _one(f.AUDIT_QUEUED, status.queued)
        yield _one(f.AUDIT_LAG, status.lag_s)
        yield _one(f.AUDIT_FAILING, status.failing_since is not None)
        yield _one(f.AUDIT_FAILING_SINCE, status.failing_since or 0.0)
        yield _one(f.AUDIT_FAILED, status.final)

    return read


def drift_reader(sink: DriftSink) -> Reader:
    """How live traffic compares with the baseline."""

    def read() -> Iterator[Reading]:
        status = sink.status
        named = [((state.rule.policy, state.rule.rule), state) for state in status.rules]
        yield f.DRIFT_PSI, [(name, each.psi) for name, each in named if each.psi is not None]
        yield f.DRIFT_P, [(name, each.p) for name, each in named if each.p is not None]
        yield f.DRIFT_FIRING, [(name, each.firing_since is not None) for name, each in named]
        yield f.DRIFT_REQUESTS, [(name, each.n_requests) for name, each in named]
        yield _one(f.DRIFT_LOOKS, status.n_looks)
        yield _one(f.DRIFT_REFUSED, status.refused is not None)

    return read


def alerts_reader(alerts: AlertManager) -> Reader:
    """What fires over all requests, and whether receivers are told."""

    def read() -> Iterator[Reading]:
        yield f.ALERTS, [((state,), n) for state, n in alerts.states().items()]
        counts = sorted(alerts.counts().items())
        yield (
            f.NOTIFICATIONS,
            [
                ((name, result), getattr(each, result))
                for name, each in counts
                for result in ("delivered", "dead")
            ],
        )
        yield f.NOTIFY_FAILED, [((name,), each.failed) for name, each in counts]
        yield f.NOTIFY_LIMITED, [((name,), each.limited) for name, each in counts]
        yield f.NOTIFY_WAITING, [((name,), each.waiting) for name, each in counts]

    return read
