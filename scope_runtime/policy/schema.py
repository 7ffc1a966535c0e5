"""The published JSON Schema, and its findings in words that fit a policy's author.

Policies are held against policy.schema.json and nothing else (other files of ours against theirs);
this module only turns what jsonschema finds into PolicyErrors. It leans on how the schema is
written: a ``title`` is a noun phrase that can follow "expected", ``oneOf``/``anyOf`` of ``required``
lists keys that exclude each other, ``dependentRequired`` says which key a key goes with, and any
other ``anyOf`` offers alternatives of different types.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema import ValidationError
from jsonschema.protocols import Validator

from scope_runtime.errors import Location, PolicyError
from scope_runtime.policy.words import (
    cut,
    describe,
    did_you_mean,
    listed,
    matches,
    nearest,
    quotes_advice,
)
from scope_runtime.policy.yaml12 import Document, KeyPath, key_text

_MESSAGES = {
    "type": "wrong type",
    "enum": "unknown value",
    "const": "wrong value",
    "pattern": "malformed value",
    "minimum": "out of range",
    "maximum": "out of range",
    "exclusiveMinimum": "out of range",
    "minLength": "empty value",
    "maxLength": "the value is too long",
    "minItems": "empty list",
    "minProperties": "empty mapping",
    "maxProperties": "too many keys",
    "uniqueItems": "the same value twice",
}
# jsonschema's types allow any part of an error to be unset; those that its validators yield are not.
_Error = Any

SCHEMA_PATH = Path(__file__).with_name("policy.schema.json")


@dataclass(frozen=True, slots=True)
class Finding:
    """One error and the path of the value that it makes unusable."""

    path: KeyPath
    error: PolicyError


@functools.cache
def schema(path: Path = SCHEMA_PATH) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that lies in the package; the policy's unless told otherwise."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@functools.cache
def _validator(path: Path) -> Validator:
    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not matches(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    extend: Any = jsonschema.validators.extend  # untyped
    made: Validator = extend(jsonschema.Draft202012Validator, {"pattern": pattern})(schema(path))
    return made


def schema_findings(document: Document, path: Path = SCHEMA_PATH) -> list[Finding]:
    """Where the document departs from the schema at ``path``; at most one finding for each value or key."""
    translator = _Translator(document, schema(path))
    for error in _validator(path).iter_errors(document.tree):
        translator.translate(error)
    return translator.findings()


class _Translator:
    def __init__(self, document: Document, schema: dict[str, Any]) -> None:
        self._document = document
        self._schema = schema
        self._values: dict[KeyPath, Finding] = {}  # one a value: the first says enough
        self._keys: dict[tuple[KeyPath, str], Finding] = {}
        self._meant: set[tuple[KeyPath, str]] = set()  # keys that an unknown key probably meant
        self._unmet: list[tuple[set[str], Finding]] = []  # missing keys, any of which would do

    def findings(self) -> list[Finding]:
        """One slip, one finding.

        A missing key that is only misspelt is reported as the misspelt key, and keys that want a
        partner are not reported where the choice of partners is still to be made.
        """
        choices = {(f.path, name) for names, f in self._unmet if len(names) > 1 for name in names}
        unmet = {
            str(finding.error): finding
            for names, finding in self._unmet
            if not any((finding.path, name) in self._meant for name in names)
            and (len(names) > 1 or (finding.path, *names) not in choices)
        }
        return [*self._values.values(), *self._keys.values(), *unmet.values()]

    def translate(self, error: _Error, title: str | None = None) -> None:
        path = tuple(error.absolute_path)
        kind = error.validator
        if "propertyNames" in error.schema_path:
            self._bad_key(error, path)
        elif kind == "additionalProperties":
            for key in error.instance:
                if key not in error.schema["properties"]:
                    self._unknown_key(key, path, list(error.schema["properties"]))
        elif kind == "required":
            for key in error.validator_value:
                if key not in error.instance:
                    self._missing({key}, path, f'missing key "{key}"', None)
        elif kind == "dependentRequired":
            self._misplaced_keys(error, path)
        elif kind in ("oneOf", "anyOf"):
            branches = error.validator_value
            if all(set(branch) == {"required"} for branch in branches):
                self._choice_of_keys(error, path, [branch["required"][0] for branch in branches])
            else:
                self._alternatives(error, path)
        else:
            self._value(error, path, title)

    def _value(self, error: _Error, path: KeyPath, title: str | None) -> None:
        kind, value, written = str(error.validator), error.instance, self._document.marks[path].text
        found: str | None = describe(value, written, typed=kind == "type")
        expected = title or error.schema.get("title", "another value")
        hint = None
        if kind == "enum" and isinstance(value, str):
            hint = did_you_mean(value, [str(option) for option in error.validator_value])
        elif kind in ("minItems", "minProperties"):
            found = None
        elif kind == "maxProperties":
            found = ", ".join(map(str, value))
        elif kind == "uniqueItems":
            found = describe(next(item for item in value if value.count(item) > 1))
            expected = "each value once"
        elif kind == "maxLength":
            found, expected = f"{len(value)} characters", f"at most {error.validator_value}"
        elif kind == "maximum" and str(error.validator_value) not in expected:
            expected += f", at most {error.validator_value}"
        elif kind == "minimum" and error.validator_value and "from" not in expected:
            expected += f", at least {error.validator_value}"
        elif kind == "type":
            hint = quotes_advice(value, written, error.schema)
        self._put(path, _MESSAGES[kind], found, expected, hint)

    def _put(
        self, path: KeyPath, message: str, found: str | None, expected: str | None, hint: str | None
    ) -> None:
        error = PolicyError(
            message,
            location=self._document.marks[path].value,
            key=key_text(path),
            found=found,
            expected=expected,
            hint=hint,
        )
        self._values.setdefault(path, Finding(path, error))

    def _alternatives(self, error: _Error, path: KeyPath) -> None:
        """Reports on the alternative whose type is the value's; if none is, on all of them."""
        wrong_type = {
            child.schema_path[0]
            for child in error.context or ()
            if child.validator == "type" and not child.path
        }
        meant = [child for child in error.context or () if child.schema_path[0] not in wrong_type]
        if not meant:
            written = self._document.marks[path].text
            hints = [
                quotes_advice(error.instance, written, branch) for branch in self._branches(error)
            ]
            found = describe(error.instance, written, typed=True)
            hint = next(filter(None, hints), None)
            self._put(path, "wrong type", found, error.schema["title"], hint)
        for child in meant:
            whole = not child.path and not isinstance(error.instance, (list, dict))
            self.translate(child, error.schema.get("title") if whole else None)

    def _branches(self, error: _Error) -> Iterator[dict[str, Any]]:
        for branch in error.validator_value:
            target = branch.get("$ref", "").rpartition("/")[2]
            yield {**self._schema["$defs"].get(target, {}), **branch}

    def _unknown_key(self, key: str, path: KeyPath, known: list[str]) -> None:
        near = nearest(key, known)
        if near:
            self._meant.add((path, near))
        self._put_key(
            (*path, key),
            f'unknown key "{cut(key)}"',
            expected=None if near else listed(known),
            hint=f'Did you mean "{near}"?' if near else None,
        )

    def _bad_key(self, error: _Error, path: KeyPath) -> None:
        key = (*path, error.instance)
        self._put_key(key, "malformed key", expected=error.schema["title"], spoils=key)

    def _misplaced_keys(self, error: _Error, path: KeyPath) -> None:
        for key, partners in error.validator_value.items():
            for partner in partners:
                if key in error.instance and partner not in error.instance:
                    where = self._key_location((*path, key))
                    message = f'"{key}" goes only with "{partner}"'
                    self._missing({partner}, path, message, None, where, key)

    def _choice_of_keys(self, error: _Error, path: KeyPath, choices: list[str]) -> None:
        if not isinstance(error.instance, dict):
            return  # its type is wrong, which is said already
        present = [key for key in error.instance if key in choices]
        count = "exactly one of " if error.validator == "oneOf" else ""
        expected = count + listed(choices)
        if not present:
            self._missing(set(choices), path, "missing key", expected)
            return
        self._put_key(
            (*path, present[1]),
            "keys that exclude each other",
            found=listed(present, "and"),
            expected=expected,
        )

    def _missing(
        self,
        names: set[str],
        path: KeyPath,
        message: str,
        expected: str | None,
        where: Location | None = None,
        key: str | None = None,
    ) -> None:
        error = PolicyError(
            message,
            location=where or self._document.marks[path].value,
            key=key_text((*path, key) if key else path),
            expected=expected,
        )
        self._unmet.append((names, Finding(path, error)))

    def _put_key(
        self,
        path: KeyPath,
        message: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        spoils: KeyPath | None = None,
    ) -> None:
        error = PolicyError(
            message,
            location=self._key_location(path),
            key=key_text(path),
            found=found,
            expected=expected,
            hint=hint,
        )
        spoilt = path[:-1] if spoils is None else spoils
        self._keys.setdefault((path, message), Finding(spoilt, error))

    def _key_location(self, path: KeyPath) -> Location:
        mark = self._document.marks[path]
        return mark.key or mark.value
