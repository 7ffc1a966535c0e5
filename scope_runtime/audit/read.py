"""Looking things up in a log: filters, the last records, tables."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scope_runtime.audit.segments import LogFiles, parse_line, read_lines
from scope_runtime.errors import AuditError, Location, UsageError

Record = dict[str, Any]

COLUMNS = {
    "index": "int64",
    "time": "float64",
    "kind": "string",
    "what": "string",
    "request_id": "string",
    "policy": "string",
    "rule": "string",
    "op": "string",
    "mode": "string",
    "layer": "int64",
    "revision": "string",
    "n_tokens": "int64",
    "n_fired": "int64",
    "activation_max": "float64",
    "activation_mean": "float64",
    "dose_max": "float64",
    "dose_mean": "float64",
    "labels": "string",
    "record": "string",
}
"""Columns of a table, and their types; ``labels`` and the whole ``record`` are JSON."""

_TYPES: dict[str, tuple[type, ...]] = {"int64": (int,), "float64": (int, float), "string": (str,)}


@dataclass(frozen=True, slots=True)
class Query:
    """Which records; what is None asks for nothing.

    Attributes:
        since, until: seconds since the epoch; from the first on, and before the second.
        request: a request's id.
        rule: a rule's name.
        policy: a policy's name, or a revision of one.
        kind, what: of the event.
    """

    since: float | None = None
    until: float | None = None
    request: str | None = None
    rule: str | None = None
    policy: str | None = None
    kind: str | None = None
    what: str | None = None

    def takes(self, record: Record) -> bool:
        time = record.get("time")
        if not isinstance(time, (int, float)):
            return False
        if self.since is not None and time < self.since:
            return False
        if self.until is not None and time >= self.until:
            return False
        for key, wanted in (
            ("request_id", self.request),
            ("rule", self.rule),
            ("kind", self.kind),
            ("what", self.what),
        ):
            if wanted is not None and record.get(key) != wanted:
                return False
        return self.policy is None or self.policy in _policies(record)


def _policies(record: Record) -> set[object]:
    """Every name and revision of a policy that the record says."""
    found = {record.get("policy"), record.get("revision")}
    if record.get("kind") == "policy":
        found |= {record.get("name"), record.get("previous")}
    for key in ("revisions", "policies"):
        parts = record.get(key)
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                found |= {part.get("revision"), part.get("name")}
    return found - {None}


def read(files: LogFiles, query: Query | None = None) -> Iterator[Record]:
    """The records of a log, oldest first. A torn last line is left out; whether they are true is for ``verify``.

    Raises:
        AuditError: a file cannot be read, or a line is no record.
    """
    for path in files.segments():
        for number, line in enumerate(read_lines(path), 1):
            if not line.endswith(b"\n"):
                break
            record = parse_line(line)
            if record is None:
                raise AuditError(
                    "is no record", location=Location(str(path), number), found=repr(line[:40])
                )
            if query is None or query.takes(record):
                yield record


def row(record: Record) -> dict[str, Any]:
    """A record as a row of a table: one value per column, None where it has none."""
    chain = record.get("chain")
    out: dict[str, Any] = {name: record.get(name) for name in COLUMNS}
    out["index"] = chain.get("index") if isinstance(chain, dict) else None
    for name in ("activation", "dose"):
        values = record.get(name)
        for each in ("max", "mean"):
            out[f"{name}_{each}"] = values.get(each) if isinstance(values, dict) else None
    out["labels"] = json.dumps(record["labels"], ensure_ascii=False) if "labels" in record else None
    out["record"] = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    for name, kind in COLUMNS.items():
        if not isinstance(out[name], _TYPES[kind]) or isinstance(out[name], bool):
            out[name] = None
    return out


def write_csv(records: Iterable[Record], out: IO[str]) -> int:
    """Writes a table with a line of names; returns the number of rows."""
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    n = 0
    for record in records:
        writer.writerow(row(record))
        n += 1
    return n


def write_parquet(records: Iterable[Record], path: Path, batch: int = 10_000) -> int:
    """Writes a table; returns the number of rows.

    Raises:
        UsageError: pyarrow is not installed.
        AuditError: the file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet needs pyarrow", hint="pip install 'scope-runtime[parquet]'"
        ) from None
    types = {"int64": pyarrow.int64(), "float64": pyarrow.float64(), "string": pyarrow.string()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    n = 0
    try:
        with pyarrow.parquet.ParquetWriter(str(path), schema) as writer:
            for rows in _batches(records, batch):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                n += len(rows)
    except OSError as error:
        raise AuditError(
            "cannot be written", location=Location(str(path)), found=str(error)
        ) from None
    return n


def _batches(records: Iterable[Record], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.append(row(record))
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


class Tail:
    """Follows a log that another process writes, over its rotations.

    Args:
        files: the log; what is in it already is passed over.
    """

    def __init__(self, files: LogFiles) -> None:
        self._path = files.path
        self._fd = -1
        self._rest = b""
        self._open()
        if self._fd >= 0:
            self._read()

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1

    def new(self) -> list[Record]:
        """The records since the last call; none if nothing has happened."""
        found = self._read() if self._fd >= 0 else []
        if self._fd < 0 or self._moved():
            if self._fd >= 0:
                # What came between the look above and the rotation.
                found += self._read()
                os.close(self._fd)
            self._rest = b""
            self._open()
            found += self._read() if self._fd >= 0 else []
        return found

    def _moved(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(self._fd)
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)

    def _read(self) -> list[Record]:
        while data := os.read(self._fd, 1 << 20):
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [record for record in map(parse_line, lines) if record is not None]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
