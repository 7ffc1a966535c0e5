"""A test file → a PolicyTest, or every error in it at once, each with file, line and column."""

from __future__ import annotations

import datetime
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_runtime.cases.model import AlertState, Case, Expectation, PolicyTest, Range
from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.policy.load import TEST_SUFFIXES, load_policy
from scope_runtime.policy.model import Op, Policy
from scope_runtime.policy.schema import schema_findings
from scope_runtime.policy.words import did_you_mean, listed
from scope_runtime.policy.yaml12 import MAX_FILE_BYTES, Document, KeyPath, decode, key_text, parse

SCHEMA_PATH = Path(__file__).with_name("cases.schema.json")
DEFAULT_REQUEST_ID = "test"
_RANGES = ("tokens", "activation", "dose")
_POSITIONS = ("first", "last")


def is_test(path: Path) -> bool:
    """Whether a file is a policy's test, by its name."""
    return path.name.endswith(TEST_SUFFIXES)


def load_test(path: str | os.PathLike[str], *, root: str | Path | None = None) -> PolicyTest:
    """Reads and checks a test and the policy that it names; recordings and models are not opened.

    Args:
        path: the test file.
        root: see ``load_policy``.

    Raises:
        PolicyErrors: everything that is wrong with it; or with its policy, where the test is right.
    """
    file = os.fspath(path)
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        found = error.strerror or str(error)
        unreadable = PolicyError("the test cannot be read", location=Location(file), found=found)
        raise PolicyErrors((unreadable,)) from None
    document = parse(decode(data, file), file, "policy's test")
    findings = schema_findings(document, SCHEMA_PATH)
    early = {path for path, _ in document.errors}
    errors: list[ScopeError] = [error for _, error in document.errors]
    errors += [finding.error for finding in findings if finding.path not in early]
    if errors:
        raise PolicyErrors(tuple(sorted(errors, key=_place)))
    policy = load_policy(Path(file).parent / document.tree["policy"], root=root)
    errors += _Checker(document, policy).errors()
    if errors:
        raise PolicyErrors(tuple(sorted(errors, key=_place)))
    raw = document.tree["cases"]
    cases = tuple(_case(document, i, Path(file).parent) for i in range(len(raw)))
    return PolicyTest(file, policy, cases)


def _place(error: ScopeError) -> tuple[int, int]:
    where = error.location
    return (where.line, where.column) if where else (0, 0)


class _Checker:
    """What the schema cannot say."""

    def __init__(self, document: Document, policy: Policy) -> None:
        self._document = document
        self._rules = {rule.name: rule for rule in policy.rules}

    def errors(self) -> Iterator[PolicyError]:
        seen: dict[str, Location] = {}
        for i, case in enumerate(self._document.tree["cases"]):
            at: KeyPath = ("cases", i)
            where = self._document.marks[(*at, "name")].value
            if case["name"] in seen:
                yield self._error(
                    (*at, "name"), "two cases of one name", f'"{case["name"]}"', "a name of its own"
                )
            seen.setdefault(case["name"], where)
            if "date" in case:
                yield from self._date((*at, "date"), case["date"])
            yield from self._expect((*at, "expect"), case)

    def _date(self, path: KeyPath, text: str) -> Iterator[PolicyError]:
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            yield self._error(path, "no such day", f'"{text}"', "a day of the calendar")

    def _expect(self, path: KeyPath, case: dict[str, Any]) -> Iterator[PolicyError]:
        expect = case["expect"]
        for section in ("rules", "alerts"):
            for name, wanted in expect.get(section, {}).items():
                at = (*path, section, name)
                rule = self._rules.get(name)
                if rule is None:
                    yield self._unknown(at, name)
                elif section == "alerts" and rule.op is not Op.ALERT:
                    yield self._error(at, "not an alert", f"the {rule.op} rule", "an alert rule")
                if isinstance(wanted, dict):
                    yield from self._ranges(at, wanted)
        if "answer" not in expect:
            return
        if "prompt" not in case:
            yield self._error(
                (*path, "answer"),
                "a recording has no answer to look at",
                None,
                "a case with a prompt",
            )
        for kind in ("matches", "excludes_matches"):
            for i, pattern in enumerate(expect["answer"].get(kind, ())):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # what Python may read otherwise one day
                        re.compile(pattern)
                except re.error as reason:
                    at = (*path, "answer", kind, i)
                    yield self._error(
                        at, "not a regular expression", str(reason), "one of Python's"
                    )

    def _ranges(self, path: KeyPath, wanted: dict[str, Any]) -> Iterator[PolicyError]:
        for key in _RANGES:
            bounds = wanted.get(key)
            if not isinstance(bounds, dict) or not {"min", "max"} <= bounds.keys():
                continue
            if bounds["min"] > bounds["max"]:
                found = f"min {bounds['min']:g} and max {bounds['max']:g}"
                yield self._error((*path, key, "min"), "min is above max", found, "min ≤ max")

    def _unknown(self, path: KeyPath, name: str) -> PolicyError:
        near = did_you_mean(name, list(self._rules))
        return PolicyError(
            f'the policy has no rule "{name}"',
            location=self._location(path),
            key=key_text(path),
            expected=None if near else listed(sorted(self._rules)) or "a policy with rules",
            hint=near,
        )

    def _error(self, path: KeyPath, message: str, found: str | None, expected: str) -> PolicyError:
        where = self._location(path)
        return PolicyError(
            message, location=where, key=key_text(path), found=found, expected=expected
        )

    def _location(self, path: KeyPath) -> Location:
        mark = self._document.marks[path]
        return mark.value if path[-1] in ("name", "date") else mark.key or mark.value


def _case(document: Document, index: int, folder: Path) -> Case:
    raw = document.tree["cases"][index]
    at: KeyPath = ("cases", index)

    def path(key: str) -> Path | None:
        return folder / raw[key] if key in raw else None

    return Case(
        name=raw["name"],
        location=document.marks[at].value,
        expectations=tuple(_expectations(document, (*at, "expect"), raw["expect"])),
        labels=raw.get("labels", {}),
        request_id=raw.get("request_id", DEFAULT_REQUEST_ID),
        recording=path("recording"),
        text=int(raw.get("text", 0)),
        prompt_tokens=int(raw["prompt_tokens"]) if "prompt_tokens" in raw else None,
        date=raw.get("date"),
        model=path("model"),
        prompt=raw.get("prompt"),
        system=raw.get("system"),
        raw=raw.get("raw", False),
        max_tokens=int(raw.get("max_tokens", 64)),
    )


def _expectations(
    document: Document, path: KeyPath, expect: dict[str, Any]
) -> Iterator[Expectation]:
    def one(subject: str, what: str, wanted: Any, *at: str | int) -> Expectation:
        where = document.marks[(*path, *at)]
        return Expectation(
            subject, what, wanted, where.key or where.value, key_text((*path, *at)) or ""
        )

    for name, wanted in expect.get("rules", {}).items():
        for what, value in wanted.items():
            if what in _POSITIONS or (what in _RANGES and not isinstance(value, dict)):
                value = Range(value, value)
            elif what in _RANGES:
                value = Range(value.get("min"), value.get("max"))
            yield one(name, what, value, "rules", name, what)
    for name, state in expect.get("alerts", {}).items():
        yield one(name, "alert", AlertState(state), "alerts", name)
    if "aborts" in expect:
        yield one("", "aborts", expect["aborts"], "aborts")
    for kind, texts in expect.get("answer", {}).items():
        for i, text in enumerate(texts):
            yield one("", kind, text, "answer", kind, i)
