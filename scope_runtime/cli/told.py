"""What is to be said of the model, and what becomes of the policies: a line on stderr each, for an operator to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scope_runtime.events import Event, Kind
from scope_runtime.told import tell


class Told:
    """A sink of events."""

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            for line in _said(event):
                tell(line)

    def close(self) -> None:
        pass


def _said(event: Event) -> Iterator[str]:
    if event.kind is Kind.POLICY:
        yield from lines(event.record())
    elif event.kind is Kind.RUNTIME and event.what == "start":
        yield from (f"note: {note}" for note in event.detail.get("notes", ()))


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A policy event in words: what, which revision, who and why; then each error in a line of its own."""
    said = dict.fromkeys(str(record[key]) for key in ("trigger", "actor") if record.get(key))
    who = " by ".join(said)
    parts = [
        str(record["what"]),
        str(record.get("revision") or f"{record.get('in_force') or 'none'} stays"),
        f"({who})" if who else "",
        f": {record['reason']}" if record.get("reason") else "",
    ]
    yield f"policy: {' '.join(part for part in parts[:3] if part)}{parts[3]}".replace("\n", " ")
    for error in record.get("errors") or ([record] if record.get("error") else []):
        yield f"  {_sentence(error)}".replace("\n", " ")


def _sentence(error: Mapping[str, Any]) -> str:
    place = ":".join(str(error[key]) for key in ("file", "line", "column") if error.get(key))
    words = [f"{place}: " if place else "", str(error.get("message"))]
    words += [f"; {key} {error[key]}" for key in ("found", "expected") if error.get(key)]
    return "".join(words)
