"""``scope audit show``, ``tail``, ``query`` and ``export``: what a log says."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.audit.contents import sealed_in
from scope_runtime.audit.openings import all_openings
from scope_runtime.audit.query import make_query
from scope_runtime.audit.read import Record, Tail, read, write_csv, write_parquet
from scope_runtime.audit.segments import find_logs
from scope_runtime.cli.spread import spread
from scope_runtime.errors import AuditError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.types import StrEnum

_POLL_S = 0.2

LogArgument = Annotated[Path, typer.Argument(metavar="FILE|DIR", help="The log, or where it lies.")]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="From then on: 2026-11-21T10:00Z, or 30m, 24h, 7d ago."
    ),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Before then, likewise.")
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are asked for."""

    since: SinceOption = None
    until: UntilOption = None
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="Of this request.")
    ] = None
    rule: Annotated[str | None, typer.Option("--rule", metavar="NAME", help="Of this rule.")] = None
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME", help="Of this policy, by name or revision."),
    ] = None
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="request, alert, policy or runtime."),
    ] = None

    def read(self, log: Path) -> Iterator[Record]:
        """Those of a log, or of all logs of a directory."""
        query = make_query(self.since, self.until, self.request, self.rule, self.policy, self.kind)
        for files in find_logs([log]):
            yield from read(files, query)


class Format(StrEnum):
    """What ``export`` writes."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


@spread
def show(
    log: LogArgument,
    index: Annotated[
        int | None,
        typer.Argument(min=0, help="One record, by its index; else all that are asked for."),
    ] = None,
    *,
    wanted: Wanted,
    content: Annotated[
        bool, typer.Option("--content", help="With the prompts and outputs that are kept.")
    ] = False,
) -> None:
    """Print records for people: one line each, or one record whole.

    \b
    Examples:
      scope audit show audit.jsonl --since 24h --kind alert
      scope audit show audit.jsonl 17
      scope audit show audit.jsonl --request 7c1f… --content
    """
    found = wanted.read(log)
    shown = opened(log, list(found)) if content else ((record, ()) for record in found)
    for record, texts in shown:
        if index is None:
            typer.echo(line_of(record))
        elif _index(record) == index:
            typer.echo(json.dumps(record, ensure_ascii=False, indent=2))
        else:
            continue
        for name, text in texts:
            typer.echo(f"        {name}: {text}")
        if index is not None:
            return
    if index is None:
        return
    raise UsageError(f"there is no record {index}", found=str(log))


def tail(
    log: LogArgument,
    n: Annotated[int, typer.Option("-n", min=0, help="This many of the last records.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
) -> None:
    """Print the last records, one line each.

    \b
    Examples:
      scope audit tail audit.jsonl
      scope audit tail audit.jsonl --follow
    """
    [files] = find_logs([log])
    follower = Tail(files) if follow else None
    for record in deque(read(files), maxlen=n):
        typer.echo(line_of(record))
    while follower is not None:
        for record in follower.new():
            typer.echo(line_of(record))
        sys.stdout.flush()
        time.sleep(_POLL_S)


@spread
def query(log: LogArgument, wanted: Wanted) -> None:
    """Print records for programs: one JSON object a line.

    \b
    Examples:
      scope audit query audit.jsonl --rule stay-in-english | jq .dose.max
      scope audit query /var/log/scope --request 7c1f… --since 7d
    """
    for record in wanted.read(log):
        typer.echo(_json(record))


@spread
def export(
    log: LogArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: by the file's ending.")
    ] = None,
    *,
    wanted: Wanted,
) -> None:
    """Write records to a file: JSON lines, or a table as CSV or Parquet.

    A table has columns for what most records have, and the whole record as JSON in its last one.

    \b
    Examples:
      scope audit export audit.jsonl --out last-week.csv --since 7d
      scope audit export audit.jsonl --out audit.parquet
    """
    form = form or _format_of(out)
    found = wanted.read(log)
    with written_whole(out, AuditError) as temporary:
        if form is Format.PARQUET:
            n = write_parquet(found, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                if form is Format.CSV:
                    n = write_csv(found, file)
                else:
                    n = sum(file.write(_json(record) + "\n") > 0 for record in found)
    typer.echo(f"{out}: {n} records")


def _format_of(out: Path) -> Format:
    form = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}.get(out.suffix)
    if form is None:
        raise UsageError(
            "the file's ending does not say what to write",
            found=out.name,
            expected=".jsonl, .csv or .parquet",
            hint="Or give --format",
        )
    return Format(form)


def opened(
    log: Path, records: list[Record]
) -> Iterator[tuple[Record, tuple[tuple[str, str], ...]]]:
    """Records with their prompts and outputs, as JSON strings; or in brackets why they are not there."""
    [files] = find_logs([log])
    wanted = {sealed.text for record in records for sealed in sealed_in(record)}
    found = all_openings(files, wanted)
    for record in records:
        texts = []
        for sealed in sealed_in(record):
            opening = found.get(sealed.text)
            if opening is None:
                said = "(redacted, or not here)"
            elif opening.text is None:
                said = "(only its commitment is kept)"
            elif not opening.opens(sealed):
                said = "(what is kept is not what the log commits to)"
            else:
                said = json.dumps(opening.text, ensure_ascii=False)
            texts.append((sealed.name, "".join(c if c.isprintable() else "\ufffd" for c in said)))
        yield record, tuple(texts)


def _index(record: Record) -> object:
    chain = record.get("chain")
    return chain.get("index") if isinstance(chain, dict) else None


def _json(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def line_of(record: Record) -> str:
    """A record in one line: index, time (UTC), kind, what, and what most ask for."""
    when = record.get("time")
    shown = "-"
    if isinstance(when, (int, float)):
        at = datetime.fromtimestamp(when, timezone.utc).replace(tzinfo=None)
        shown = at.isoformat(sep=" ", timespec="milliseconds")
    words = [f"{_index(record)!s:>6}", shown, f"{record.get('kind')}/{record.get('what')}"]
    for key in ("request_id", "policy", "name", "rule", "mode", "n_tokens", "n_fired"):
        if record.get(key) is not None:
            words.append(f"{key}={record[key]}")
    dose = record.get("dose")
    if isinstance(dose, dict) and dose.get("max") is not None:
        words.append(f"dose={dose['max']:.3g}")
    for key in ("finish_reason", "revision", "message", "n_bytes", "n_events", "segment"):
        if record.get(key) is not None:
            words.append(f"{key}={record[key]}")
    # What a record says may come from a request: no control characters reach the terminal.
    return "".join(c if c.isprintable() else "\ufffd" for c in "  ".join(words))
