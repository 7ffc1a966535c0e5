"""The one error family. Every expected failure is a ScopeError that carries its fields and prints as one sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a file something stands. Lines and columns count from 1; 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return (
            f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"
        )

    def fields(self) -> dict[str, object]:
        """As plain data; None where unknown."""
        return {"file": self.file, "line": self.line or None, "column": self.column or None}


_NOWHERE: dict[str, object] = {"file": None, "line": None, "column": None}


class ScopeError(Exception):
    """Base of every error that a user of Scope Runtime is meant to read.

    Attributes:
        location: file, line and column, when the error lies in a file.
        key: dotted path of the offending key (``spec.rules[2].alpha``), when there is one.
        found: what stands there, as text.
        expected: what would have been right, as text.
        hint: one more sentence on how to mend it.
        related: the other places that it takes to be wrong, such as the other side of a contradiction.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        location: Location | None = None,
        key: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        related: tuple[Location, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.key = key
        self.found = found
        self.expected = expected
        self.hint = hint
        self.related = related

    def __str__(self) -> str:
        text = f"{self.location}: {self.message}" if self.location else self.message
        if self.key:
            text += f" (at {self.key})"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.hint:
            text += f". {self.hint}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole: workers report what went wrong in their own words."""
        return (Exception.__new__, (type(self), *self.args), self.__dict__)

    def fields(self) -> dict[str, object]:
        """The error as plain data, for ``--json`` and for audit records."""
        related = {"related": [where.fields() for where in self.related]} if self.related else {}
        return {
            "error": type(self).__name__,
            "message": self.message,
            **(self.location.fields() if self.location else _NOWHERE),
            "key": self.key,
            "found": self.found,
            "expected": self.expected,
            "hint": self.hint,
            **related,
        }


class PolicyError(ScopeError):
    """A policy that cannot be read, or does not mean anything."""


class PackError(ScopeError):
    """A feature pack or control vector that cannot be read or trusted."""


class ModelError(ScopeError):
    """A model file that llama.cpp must not see, or that a policy does not fit."""


class CompileError(ScopeError):
    """A policy that is well-formed but cannot be carried out on this model with these packs."""


class HookError(ScopeError):
    """The native hook is missing, cannot attach, or found that it would steer wrongly."""


class AuditError(ScopeError):
    """The audit log cannot be written or does not verify."""


class BundleError(ScopeError):
    """A bundle that cannot be read, fetched or trusted."""


class UsageError(ScopeError):
    """A command or call that was used wrongly."""

    exit_code = 2


class PolicyErrors(PolicyError):
    """Several errors of one policy, found in one pass; prints one a line.

    Attributes:
        errors: the single errors, in file order.
    """

    def __init__(self, errors: tuple[ScopeError, ...]) -> None:
        super().__init__(f"{len(errors)} errors", location=errors[0].location if errors else None)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)

    def fields(self) -> dict[str, object]:
        """As of one error, the first if it is the only one, with all of them under ``errors``."""
        alone = self.errors[0].fields() if len(self.errors) == 1 else super().fields()
        return {**alone, "errors": [error.fields() for error in self.errors]}
