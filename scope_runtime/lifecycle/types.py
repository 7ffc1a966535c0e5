"""What the parts of the lifecycle hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from scope_runtime.audit import AuditLog
from scope_runtime.errors import ScopeError
from scope_runtime.events import Event, Kind
from scope_runtime.select import ProgramSource

if TYPE_CHECKING:
    from scope_runtime.lifecycle.build import Built
    from scope_runtime.lifecycle.source import Source


class StaleRevision(ScopeError):
    """What is in force is not what the caller believes."""


class Target(Protocol):
    """What policies are swapped into: a Runtime."""

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None: ...

    def record(self, what: str, kind: Kind, **detail: object) -> None: ...

    def events(self) -> tuple[Event, ...]: ...

    @property
    def acknowledged(self) -> bool: ...

    @property
    def audit(self) -> AuditLog | None: ...


class Builder(Protocol):
    """What makes programs of a source: a Compiler."""

    def build(self, source: Source, named: tuple[str, ...] = ()) -> Built: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How policies are followed.

    Attributes:
        poll_s: how often the files are digested, whatever events say or fail to say.
        debounce_ms: how long the files must rest after a change; at most ten times that is waited.
        compile_nice: niceness of the compiling process, 0 to 19.
        fail: what to do at the start without a policy that can be used: ``closed`` refuses to start, ``open`` runs
            unsteered until there is one.
        events: take hints from the file system; without them digests alone are compared.
        keep: sets to keep in the state directory.
    """

    poll_s: float = 2.0
    debounce_ms: float = 10.0
    compile_nice: int = 10
    fail: str = "closed"
    events: bool = True
    keep: int = 10


@dataclass(frozen=True, slots=True)
class Cause:
    """Who wants something, by which way, and why."""

    trigger: str
    actor: str
    reason: str | None = None

    def fields(self) -> dict[str, object]:
        return {"trigger": self.trigger, "actor": self.actor, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload or a rollback did; failures are raised."""

    revision: str
    previous: str
    changed: bool
    note: str | None = None


@dataclass(frozen=True, slots=True)
class LastReload:
    """How the latest attempt went; ``error`` is None where it went well."""

    time: float
    trigger: str
    error: ScopeError | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Since the start."""

    ok: int = 0
    refused: int = 0
