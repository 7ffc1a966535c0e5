"""Whether the prompts and outputs beside a log are those that its records committed to, and all there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_runtime.audit.contents import Opening, Sealed, redacted_in, sealed_in
from scope_runtime.audit.openings import openings
from scope_runtime.audit.report import Bad, ContentsReport
from scope_runtime.audit.segments import Damaged, LogFiles


@dataclass(frozen=True, slots=True)
class Place:
    """Of a commitment: its record's index, the segment's file and the line in it; what the record says."""

    index: int
    file: str
    line: int
    sealed: Sealed
    request_id: object
    time: object

    def is_opened_by(self, opening: Opening) -> bool:
        about = (opening.name, opening.request_id, opening.time)
        return opening.opens(self.sealed) and about == (
            self.sealed.name,
            self.request_id,
            self.time,
        )


class ContentsCheck:
    """Follows a verification through the segments."""

    def __init__(self, files: LogFiles) -> None:
        self.report = ContentsReport()
        self._files = files
        self._here: dict[str, Place] = {}
        self._absent: list[Place] = []
        self._there_though_redacted: dict[str, Place] = {}
        self._redacted: dict[str, int] = {}
        self._first: Bad | None = None

    def take(self, record: Mapping[str, Any], index: int, path: Path, line: int) -> None:
        """The next record of the segment."""
        for sealed in sealed_in(record):
            self.report.n_contents += 1
            said = record.get("request_id"), record.get("time")
            self._here[sealed.text] = Place(index, str(path), line, sealed, *said)
        for commitment in redacted_in(record):
            self._redacted.setdefault(commitment, index)

    def end_segment(self, number: int | None) -> None:
        """Holds the segment's side file against its records.

        Raises:
            AuditError: it cannot be read.
        """
        path = self._files.contents().get(number) if number is not None else None
        here, self._here = self._here, {}
        if path is not None:
            try:
                self._compare(path, here)
            except Damaged as error:
                first = min((place.index for place in here.values()), default=0)
                self._find(Bad(first, str(path), 0, f"{error.message}: {error.found}"))
                return
        self._absent += here.values()

    def _compare(self, path: Path, here: dict[str, Place]) -> None:
        for number, opening in enumerate(openings(path), 1):
            place = here.pop(opening.commitment, None) if opening is not None else None
            if opening is None or place is None:
                self.report.n_unknown += 1
            elif not place.is_opened_by(opening):
                what = f"has its {place.sealed.name} changed: it is not what the log commits to"
                self._find(Bad(place.index, str(path), number, what))
            else:
                self._there_though_redacted[opening.commitment] = place
                self.report.n_kept += opening.text is not None
                self.report.n_salts += opening.text is None

    def _find(self, finding: Bad) -> None:
        if self._first is None or (finding.index or 0) < (self._first.index or 0):
            self._first = finding

    def end(self, expired_before: int, vouched: int) -> Bad | None:
        """The first record whose content is not as it should be; None if there is none.

        Args:
            expired_before: the log says that records before this one are past their time, with what lies beside them.
            vouched: records from this one on are under no checkpoint, and excuse nothing that is missing.
        """
        for commitment in self._redacted.keys() & self._there_though_redacted.keys():
            place = self._there_though_redacted[commitment]
            what = (
                f"has its {place.sealed.name} beside it, though the log says that it was redacted"
            )
            self._find(Bad(place.index, place.file, place.line, what))
        for place in self._absent:
            if self._redacted.get(place.sealed.text, vouched) < vouched:
                self.report.n_redacted += 1
            elif place.index >= expired_before:
                name = self._files.path.stem
                missing = f"has no {place.sealed.name} in {name}.*.content"
                what = f"{missing}, and no record under a checkpoint says that it was redacted"
                self._find(Bad(place.index, place.file, place.line, what))
        return self._first
