"""How an audit log is doing, for health, readiness and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scope_runtime.audit.options import OnFailure


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """A log at one moment.

    Attributes:
        path: of the segment that is written to.
        records_written: events on the disk since the log was opened; those that the log adds itself do not count.
        dropped: events lost since then.
        queued: events that are not on the disk yet.
        lag_s: how long the oldest of them has been waiting.
        failing_since: seconds since the epoch; None while it can be written.
        error: why it cannot be written.
        final: it takes nothing more until it is opened again.
        serving: whether requests may begin; if not they wait (``block``) or are refused.
    """

    path: str
    on_failure: OnFailure
    records_written: int
    dropped: int
    queued: int
    lag_s: float
    failing_since: float | None
    error: str | None
    final: bool

    @property
    def serving(self) -> bool:
        return self.error is None or self.on_failure is OnFailure.DROP

    def fields(self) -> dict[str, Any]:
        """As JSON-ready data."""
        said = asdict(self) | {"on_failure": str(self.on_failure), "serving": self.serving}
        return said | {"lag_s": round(self.lag_s, 3)}

    def probe_fields(self) -> dict[str, Any]:
        """The same without paths, for whoever may ask a probe."""
        return {key: value for key, value in self.fields().items() if key not in ("path", "error")}
