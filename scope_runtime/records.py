"""Where everything that happens to a model under policies goes: memory, metrics, the audit log, and who else asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry

from scope_runtime.audit import AuditLog, AuditOptions, MemoryLog
from scope_runtime.events import Event, Kind, Sink
from scope_runtime.metrics import Metrics
from scope_runtime.metrics.collect import audit_reader
from scope_runtime.select import ProgramSource


class Records:
    """The one place through which every event goes; a sink itself.

    Args:
        audit: audit log to append to; None keeps events in memory only.
        metrics: registry to put metrics into; one of its own by default.
        sinks: where else events go, in this order, after memory and log; closed with it.

    Attributes:
        model_digest: ``sha256:…`` of the model, once it is known.
        sinks: everything that gets every event, in this order.
    """

    def __init__(
        self,
        audit: str | Path | AuditOptions | None,
        metrics: CollectorRegistry | None,
        sinks: Sequence[Sink],
    ) -> None:
        self.model_digest = ""
        self._memory = MemoryLog()
        self.sinks: list[Sink] = [self._memory]
        # Before the log: what happened is counted even where it cannot be put on record.
        self.metrics = Metrics(metrics)
        self.sinks.append(self.metrics.sink)
        self.audit = AuditLog(audit) if audit is not None else None
        if self.audit is not None:
            self.sinks.append(self.audit)
            self.metrics.read(audit_reader(self.audit))
        self.sinks += sinks

    def write(self, events: Sequence[Event]) -> None:
        """Hands events to every sink: what one cannot take, those after it get all the same.

        Raises:
            Exception: the first that a sink raised, such as AuditError.
        """
        first: Exception | None = None
        for sink in self.sinks:
            try:
                sink.write(events)
            except Exception as error:
                if first is None:
                    first = error
                elif error is not first:
                    first.__context__ = error  # so that a traceback shows both
        if first is not None:
            raise first

    def record(self, what: str, kind: Kind, **detail: object) -> None:
        """Puts an event that concerns no request on record."""
        if "digests" not in detail:
            detail["digests"] = {"model": self.model_digest}
        self.write([Event(kind=kind, what=what, time=time.time(), detail=detail)])

    def events(self) -> tuple[Event, ...]:
        """The last 10,000, oldest first."""
        return tuple(self._memory.kept)

    def admit(self) -> None:
        """Raises AuditError where a request could not be put on record, and none is served without."""
        if self.audit is not None:
            self.audit.admit()

    def taken_up(
        self,
        source: ProgramSource,
        previous: str,
        *,
        what: str,
        swap_ms: float,
        hook_swap_ms: float,
        **detail: object,
    ) -> None:
        """Puts on record that policies are in force, as ``what`` with ``detail``.

        Args:
            previous: the revision before.
            swap_ms: what the swap took; ``hook_swap_ms`` of it in the hook.
        """
        program = source.program
        self.metrics.sink.expect(program)
        alone = source.policies[0] if len(source.policies) == 1 else None
        members = [
            {
                "name": policy.name,
                "owner": policy.owner,
                "generation": policy.generation,
                "revision": source.revisions[policy.name],
            }
            for policy in source.policies
        ]
        self.record(
            what,
            Kind.POLICY,
            name=program.policy or None,
            owner=alone.owner if alone else None,
            generation=alone.generation if alone else None,
            revision=source.revision,
            previous=previous,
            program=program.digest,
            apply=str(source.apply),
            swap_ms=round(swap_ms, 4),
            hook_swap_ms=round(hook_swap_ms, 4),
            digests={"model": self.model_digest, "packs": dict(program.packs)},
            **({"policies": members} if len(members) > 1 else {}),
            **detail,
        )

    def close(self) -> None:
        """Safe to call twice."""
        self.metrics.close()
        # Backwards: what one puts on record while it closes, the log still takes.
        # Each of them, whatever another does: a log that is not closed has no checkpoint of its end.
        with ExitStack() as closing:
            for sink in self.sinks:
                closing.callback(sink.close)
