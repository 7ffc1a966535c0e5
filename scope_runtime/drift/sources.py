"""Where requests come from: audit logs, and recordings that a policy's program is run on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scope_runtime.audit.read import Record, read
from scope_runtime.audit.segments import LogFiles, parse_line, read_lines
from scope_runtime.drift.measure import Collector, Request
from scope_runtime.events import Event, Kind
from scope_runtime.program import Program
from scope_runtime.recording import Recording
from scope_runtime.replay import recorded_text, replay


def logged(
    logs: Sequence[LogFiles],
    *,
    labels: Mapping[str, str] | None = None,
    since: float | None = None,
    until: float | None = None,
    rules: Sequence[str] = (),
) -> Iterator[Request]:
    """Finished requests of audit logs.

    Args:
        labels: only requests with all of these.
        since, until: only requests that ended from the first on and before the second, seconds since the epoch.
        rules: only these rules, by name; all if there are none.

    Raises:
        AuditError: a log cannot be read.
    """
    for files in logs:
        collector = Collector(labels)
        # All of it is read: what a policy is called is said when it is taken up, perhaps long before.
        for request in _requests(collector, read(files)):
            if (since is None or request.time >= since) and (until is None or request.time < until):
                taken = only(request, rules)
                if taken.measured:
                    yield taken


def only(request: Request, rules: Sequence[str]) -> Request:
    """The request with these rules alone."""
    if not rules:
        return request
    measured = {key: value for key, value in request.measured.items() if key.rule in rules}
    return Request(request.time, request.model, request.packs, request.revisions, measured)


def replayed(
    recording: Recording, program: Program, rules: Sequence[str] = ()
) -> Iterator[Request]:
    """Each text of a recording as a request under a program; its time is its number.

    Raises:
        ReplayError: program and recording do not fit each other.
    """
    model = f"sha256:{recording.model.removeprefix('sha256:')}"
    for number in range(len(recording.texts)):
        text, n_prompt = recorded_text(recording, number, program)
        done = replay(program, text, n_prompt, model_digest=model)
        collector = Collector()
        collector.add({"kind": "policy", "revision": program.revision, "name": program.policy})
        digests = {"model": model, "packs": dict(program.packs)}
        events = [
            *(event for event in done.events if event.what == "rule"),
            Event(Kind.REQUEST, "summary", float(number), detail={"digests": digests}),
        ]
        records = ({**event.record(), "request_id": f"text-{number}"} for event in events)
        for request in _requests(collector, records):
            taken = only(request, rules)
            if taken.measured:
                yield taken


def _requests(collector: Collector, records: Iterable[Mapping[str, Any]]) -> Iterator[Request]:
    for record in records:
        request = collector.add(record)
        if request is not None:
            yield request


def newest(files: LogFiles, n_requests: int) -> list[Record]:
    """The end of a log, oldest record first: whole segments, as many as hold so many finished requests.

    Raises:
        AuditError: a segment cannot be read.
    """
    found: list[list[Record]] = []
    n = 0
    for path in reversed(files.segments()):
        if n >= n_requests:
            break
        found.append(_wanted(path))
        n += sum(record.get("what") == "summary" for record in found[-1])
    return [record for part in reversed(found) for record in part]


def _wanted(path: Path) -> list[Record]:
    """A segment's records that a window is rebuilt from."""
    records = (parse_line(line) for line in read_lines(path) if line.endswith(b"\n"))
    return [
        record
        for record in records
        if record is not None and record.get("kind") in ("request", "alert", "policy")
    ]
