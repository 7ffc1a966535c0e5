"""Erasing prompts and outputs that were kept, on record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scope_runtime.audit.canonical import Body
from scope_runtime.audit.contents import REDACTED, Opening
from scope_runtime.audit.openings import find
from scope_runtime.audit.segments import LogFiles
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.events import Event, Kind

_MOST_A_RECORD = 1000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which openings: of one request, or of all requests before a time (seconds since the epoch).

    Raises:
        UsageError: neither is said, or both.
    """

    request_id: str | None = None
    before: float | None = None

    def __post_init__(self) -> None:
        if (self.request_id is None) == (self.before is None):
            raise UsageError("say what to redact", expected="a request, or a time before which")

    def takes(self, opening: Opening) -> bool:
        if self.before is not None:
            return opening.time < self.before
        return opening.request_id == self.request_id

    def find(self, files: LogFiles) -> Sequence[Opening]:
        """What there is of it.

        Raises:
            AuditError: nothing.
        """
        found = find(files, self.takes)
        if not found:
            raise AuditError(
                "nothing is kept of what is to be redacted",
                found=", ".join(f"{key} {value}" for key, value in self.fields().items()),
                hint="scope audit verify tells what is kept and what was redacted before",
            )
        return found

    def fields(self) -> dict[str, Any]:
        """What is said, for the record."""
        if self.before is not None:
            return {"before": self.before}
        return {"request_id": self.request_id}


@dataclass(frozen=True, slots=True)
class Redaction:
    """What was erased."""

    n_openings: int
    n_requests: int


def redaction_records(
    found: Sequence[Opening], selection: Selection, actor: str, reason: str, time: float
) -> list[Body]:
    """What the log says of it, a thousand openings a record."""
    records = []
    for start in range(0, len(found), _MOST_A_RECORD):
        part = found[start : start + _MOST_A_RECORD]
        detail = {
            "actor": actor,
            "reason": reason,
            **selection.fields(),
            "n_openings": len(part),
            "commitments": [each.commitment for each in part],
        }
        records.append(Body(Event(Kind.RUNTIME, REDACTED, time, detail=detail).record()))
    return records
