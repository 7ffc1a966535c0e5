"""What verifying a log says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong, and where.

    Attributes:
        index: of the first record that is bad or missing; None where it is no record (a checkpoint, say).
        file: in which it is, or should be.
        line: in that file, from 1; 0 where there is none.
    """

    index: int | None
    file: str
    line: int
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{place}: " + (f"record {self.index} " if self.index is not None else "") + self.what
        )

    def fields(self) -> dict[str, object]:
        return {
            "index": self.index,
            "file": self.file,
            "line": self.line or None,
            "what": self.what,
        }


@dataclass(slots=True)
class ContentsReport:
    """What was found beside one log.

    Attributes:
        n_contents: prompts and outputs that its records committed to.
        n_kept: those whose text is there, and is the one.
        n_salts: those of which only the salt was to be kept, and is.
        n_redacted: those that were erased, as the log says.
        n_unknown: lines that open no record of the log: what a crash leaves, until the log is next written to.
    """

    n_contents: int = 0
    n_kept: int = 0
    n_salts: int = 0
    n_redacted: int = 0
    n_unknown: int = 0


@dataclass(slots=True)
class Report:
    """What was found in one log.

    Attributes:
        first: index of the first record that is there; those before are past their time.
        n_records: in the whole chain, up to the last that is there.
        covered: records under a checkpoint whose signature was checked, or under any where no key was given.
        torn_bytes: behind the last whole record: a crash, which is mended when the log is next written to.
        repaired: torn ends that were mended, as the log says itself.
        dropped: events that the log says it lost.
        n_resumed: how often a writer with a key found records that its key had not signed, as the log says itself.
        n_unsigned_before: how many those were: what they said before then, only a copy kept elsewhere can show.
        contents: prompts and outputs beside it; None where they were not looked at.
    """

    path: str
    bad: Bad | None = None
    origin: str | None = None
    first: int = 0
    n_records: int = 0
    n_segments: int = 0
    root: str | None = None
    covered: int = 0
    signed_by: tuple[str, ...] = ()
    checked: bool = False
    torn_bytes: int = 0
    repaired: int = 0
    dropped: int = 0
    n_resumed: int = 0
    n_unsigned_before: int = 0
    contents: ContentsReport | None = None
    remarks: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, object]:
        out = {name: getattr(self, name) for name in self.__slots__ if name != "bad"}
        out["contents"] = asdict(self.contents) if self.contents else None
        return {"ok": self.bad is None, **out, "bad": self.bad.fields() if self.bad else None}
