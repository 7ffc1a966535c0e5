"""The files of a log, and what stands in a segment's first record.

audit.jsonl              the segment that is written to
audit.000000.jsonl[.gz]  closed segments, in order
audit.000000.content[.gz]  prompts and outputs of a segment, closed or not, where a policy keeps them
audit.checkpoint         the newest checkpoint
audit.lock               held by the process that writes
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scope_runtime.audit.merkle import Tree
from scope_runtime.errors import AuditError, Location, UsageError
from scope_runtime.files import open_regular

SEGMENT = "segment"
RESUMED = "resumed"
MAX_LINE_BYTES = 16 << 20
_CLOSED = re.compile(r"(?P<stem>.+)\.(?P<number>[0-9]{6,})(?P<suffix>\.[^.]+)?")


class Damaged(AuditError):
    """A compressed segment that cannot be unpacked."""


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Names of a log's files, from the one that is written to."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.checkpoint")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.lock")

    def closed_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{number:06d}{self.path.suffix}")

    def content_path(self, number: int, *, packed: bool = False) -> Path:
        """The side file of a segment (openings.py)."""
        end = ".gz" if packed else ""
        return self.path.with_name(f"{self.path.stem}.{number:06d}.content{end}")

    def contents(self) -> dict[int, Path]:
        """Side files by their segments' numbers, in order. Of one that is there twice, as of ``closed``."""
        return self._numbered(f"{self.path.stem}.content")

    def closed(self) -> dict[int, Path]:
        """Closed segments by number, in order. Of one that is there twice, the one that is not compressed.

        A crash between compressing and deleting leaves both, and the compressed one is whole then; the plain one is
        what was fsynced first.
        """
        return self._numbered(self.path.name)

    def _numbered(self, name: str) -> dict[int, Path]:
        found: dict[int, Path] = {}
        if self.path.parent.is_dir():
            for child in self.path.parent.iterdir():
                parts = _closed_name(child)
                if parts and parts[0] == name:
                    number = parts[1]
                    if number not in found or child.suffix != ".gz":
                        found[number] = child
        return dict(sorted(found.items()))

    def segments(self) -> list[Path]:
        """Every segment that is there, oldest first."""
        active = [self.path] if self.path.exists() else []
        return [*self.closed().values(), *active]


def _closed_name(path: Path) -> tuple[str, int] | None:
    """(name of the log's active segment, number) of a closed segment's path."""
    match = _CLOSED.fullmatch(path.name.removesuffix(".gz"))
    if match is None:
        return None
    return match["stem"] + (match["suffix"] or ""), int(match["number"])


def find_logs(paths: list[Path]) -> list[LogFiles]:
    """The logs that files and directories belong to; any segment stands for its whole log.

    Raises:
        UsageError: no such file, or a directory without a log.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            names = {
                _active(child)
                for child in path.iterdir()
                if child.suffix == ".jsonl" or child.name.endswith(".jsonl.gz")
            }
            if not names:
                raise UsageError("no log in the directory", found=str(path), expected="*.jsonl")
            found |= dict.fromkeys(sorted(names))
        elif path.exists() or LogFiles(path).closed():
            found[_active(path)] = None
        else:
            raise UsageError("no such file or directory", found=str(path))
    return [LogFiles(path) for path in found]


def _active(path: Path) -> Path:
    closed = _closed_name(path)
    return path.with_name(closed[0]) if closed else path


def read_lines(path: Path) -> Generator[bytes, None, None]:
    """Lines with their newline; the last may be without one.

    Raises:
        AuditError: the file cannot be read, or a line has no end.
        Damaged: it is compressed, and not whole.
    """
    with open_regular(path, AuditError) as raw:
        file: BinaryIO = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        buffer = b""
        while True:
            try:
                data = file.read(1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise Damaged(
                    "cannot be unpacked", location=Location(str(path)), found=str(error)
                ) from None
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
            if len(buffer) > MAX_LINE_BYTES:
                raise AuditError(
                    "a record is too long",
                    location=Location(str(path)),
                    expected=f"at most {MAX_LINE_BYTES} bytes",
                )
        if buffer:
            yield buffer


@dataclass(frozen=True, slots=True)
class Header:
    """A segment's first record, apart from its place in the chain.

    Attributes:
        origin: the log's name.
        number: of the segment, from 0.
        tree: of all records before this one.
        time: when the segment was begun, seconds since the epoch.
        checkpoint: of all records before this one; None in the first segment.
    """

    origin: str
    number: int
    tree: Tree
    time: float
    checkpoint: str | None = None

    def detail(self) -> dict[str, Any]:
        return {
            "segment": self.number,
            "origin": self.origin,
            "tree": {"size": self.tree.size, "hashes": [each.hex() for each in self.tree.hashes]},
            **({"checkpoint": self.checkpoint} if self.checkpoint else {}),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Header | None:
        """None where the record is not a sound header."""
        if record.get("kind") != "runtime" or record.get("what") != SEGMENT:
            return None
        try:
            tree = record["tree"]
            hashes = [bytes.fromhex(each) for each in tree["hashes"]]
            number, origin, time = record["segment"], record["origin"], record["time"]
            checkpoint = record.get("checkpoint")
            if not (
                isinstance(number, int)
                and isinstance(origin, str)
                and isinstance(time, (int, float))
                and isinstance(tree["size"], int)
                and (checkpoint is None or isinstance(checkpoint, str))
            ):
                return None
            return cls(origin, number, Tree(tree["size"], hashes), time, checkpoint)
        except (KeyError, TypeError, ValueError):
            return None


def read_header(path: Path) -> Header | None:
    """The header of a segment; None where its first line is none.

    Raises:
        AuditError: as of ``read_lines``.
    """
    with closing(read_lines(path)) as lines:
        line = next(lines, b"")
    record = parse_line(line) if line.endswith(b"\n") else None
    return Header.of(record) if record is not None else None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line as a record; None where it is no JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
