"""What ``scope check`` found, in the formats that code hosts read: SARIF 2.1.0 and GitHub's annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scope_runtime.errors import Location, ScopeError
from scope_runtime.policy.lint import LintWarning
from scope_runtime.version import __version__

SARIF_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
OTHER_SIDE = "the other side of it"


@dataclass(frozen=True, slots=True)
class Finding:
    """One error or warning.

    Attributes:
        level: ``error`` or ``warning``.
        code: what kind it is: the lint's code, or the error's class (``policy-error``).
        text: the sentence, without its place.
        related: the other places that it takes to be wrong.
    """

    level: str
    code: str
    text: str
    where: Location
    related: tuple[Location, ...] = ()


def of_error(error: ScopeError, file: str) -> Finding:
    """An error as a finding; one without a place is put at the file that was checked."""
    where = error.location or Location(file)
    text = str(error).removeprefix(f"{error.location}: ")
    name = type(error).__name__
    code = "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")
    return Finding("error", code, text, where, error.related)


def of_warning(warning: LintWarning) -> Finding:
    """A lint warning as a finding."""
    return Finding("warning", warning.code, warning.message, warning.location)


def sarif(findings: Sequence[Finding]) -> dict[str, Any]:
    """One SARIF 2.1.0 log of one run."""
    codes = sorted({(f.code, f.level) for f in findings})
    rules = [
        {
            "id": code,
            "shortDescription": {"text": code.replace("-", " ")},
            "defaultConfiguration": {"level": level},
        }
        for code, level in codes
    ]
    index = {code: number for number, (code, _) in enumerate(codes)}
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "scope check",
                        "semanticVersion": __version__,
                        "rules": rules,
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(f, index[f.code]) for f in findings],
            }
        ],
    }


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    where = finding.where
    related = [
        {"id": number, "message": {"text": OTHER_SIDE}, "physicalLocation": _physical(other)}
        for number, other in enumerate(finding.related)
    ]
    # Without the lines, so that a finding that only moved is the same finding.
    text = finding.text
    for other in finding.related:
        text = text.replace(str(other), other.file)
    identity = f"{finding.code}\0{where.file}\0{text}"
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.level,
        "message": {"text": finding.text},
        "locations": [{"physicalLocation": _physical(where)}],
        **({"relatedLocations": related} if related else {}),
        "partialFingerprints": {"scope/v1": hashlib.sha256(identity.encode()).hexdigest()},
    }


def _physical(where: Location) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(where.file)}}
    if where.line:
        physical["region"] = {"startLine": where.line}
        if where.column:
            physical["region"]["startColumn"] = where.column
    return physical


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def github(findings: Iterable[Finding]) -> list[str]:
    """One workflow command a finding, which GitHub shows beside the line; a notice at each related place."""
    return [
        line
        for finding in findings
        for line in (
            _annotation(finding, finding.level, finding.where, finding.text),
            *(
                _annotation(finding, "notice", other, f"{finding.where} contradicts this")
                for other in finding.related
            ),
        )
    ]


def _annotation(finding: Finding, level: str, where: Location, text: str) -> str:
    properties = {"file": Path(where.file).as_posix(), "line": where.line, "col": where.column}
    said = {key: value for key, value in properties.items() if value}
    said["title"] = f"scope check: {finding.code}"
    written = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in said.items())
    return f"::{level} {written}::{_escaped(text)}"


def _escaped(text: str, also: str = "") -> str:
    """As GitHub's own toolkit writes it: a raw newline would end the command."""
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
