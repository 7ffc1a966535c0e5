"""How a log is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import UsageError
from scope_runtime.types import StrEnum

DAY_S = 86_400.0


class OnFailure(StrEnum):
    """What happens to callers while the log cannot be written, because the disk is full.

    An error that is not for want of space, and a failed fsync above all, is final under each of them.
    """

    BLOCK = "block"
    """They wait until it can be written again."""
    DROP = "drop"
    """They go on; what is lost is counted, and the log says so as soon as it can."""
    STOP = "stop"
    """They get an error, from then on each of them: nothing runs that is not on record."""


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """Where and how a log is kept.

    Attributes:
        path: the segment that is written to; closed ones, the checkpoint and the lock lie beside it.
        on_failure: see OnFailure.
        key: file with the key that signs checkpoints (``scope audit keygen``); without one they are unsigned.
        origin: the log's name in its checkpoints; by default the key's name, else a random one. A log keeps the
            one that it was begun with.
        rotate_bytes: a segment is closed before it grows past this.
        rotate_s: a segment is closed when its first record is this old.
        retention_s: closed segments whose last record is older are deleted, on record; None keeps all.
            184 days: no six months are longer.
        compress: gzip closed segments.
        checkpoint_s: a checkpoint is made when the last one is this old and something was written since; at each
            rotation and at the close in any case.
        queue_records: most records that wait for the disk; more have to wait, or are dropped under ``drop``.
    """

    path: str | Path
    on_failure: OnFailure = OnFailure.STOP
    key: str | Path | None = None
    origin: str | None = None
    rotate_bytes: int = 64 << 20
    rotate_s: float = 30 * DAY_S
    retention_s: float | None = 184 * DAY_S
    compress: bool = False
    checkpoint_s: float = 60.0
    queue_records: int = 10_000

    def __post_init__(self) -> None:
        """Raises: UsageError."""
        for name in ("rotate_bytes", "rotate_s", "retention_s", "checkpoint_s", "queue_records"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be positive", found=str(value))
        if self.on_failure not in list(OnFailure):
            raise UsageError(
                "unknown on_failure", found=str(self.on_failure), expected="block, drop or stop"
            )
