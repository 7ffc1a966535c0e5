"""What the parts of the lifecycle hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Protocol

from scope_runtime.audit import AuditLog
from scope_runtime.errors import ScopeError
from scope_runtime.events import Event as Record
from scope_runtime.events import Kind
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

    def events(self) -> tuple[Record, ...]: ...

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
class BundleOptions:
    """Policies that come as bundles, from where and how.

    Attributes:
        where: ``https://…``, ``oci:FOLDER[:TAG]``, a file, or a folder with one.
        keys: files of the public keys, one of which must have signed; none takes what is unsigned.
        ca: file of the certificates that a server is trusted by; else those of the machine.
        token_env: environment variable with a server's token, if it is set.
        poll_s: how often the place is asked.
        wait_s: how long a server may hold its answer back until there is a new bundle; 0 does not ask it to.
        stale_after_s: not ready when the place could not be asked for so long; None: always ready.
    """

    where: str
    keys: tuple[Path, ...] = ()
    ca: Path | None = None
    token_env: str = "SCOPE_BUNDLE_TOKEN"
    poll_s: float = 30.0
    wait_s: float = 0.0
    stale_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """How it stands with a feed.

    Attributes:
        where: the place.
        how: how it is followed, in words.
        digest: of the latest bundle that could be trusted; None: none yet.
        signed_by: id of the key that signed it; ``verified`` says whether it is a configured one.
        last_good: when the place last answered, seconds since 1970; 0: never since the start.
        error: why it did not, the last time.
        stale: whether that lasts for longer than is configured.
        ok, failed: how often it was asked.
    """

    where: str
    how: str
    digest: str | None
    signed_by: str | None
    verified: bool
    last_good: float
    error: ScopeError | None
    stale: bool
    ok: int
    failed: int


class Feed(Protocol):
    """Where sources come from that are not simply there. All methods may be called from any thread."""

    def ask(self) -> None:
        """Gets what is new, if anything is. Raises ScopeError."""

    def wait(self, closing: Event) -> None:
        """Returns when it is time to ask again; at once when closing."""

    @property
    def latest(self) -> str | None:
        """What names the latest content; None: there was none yet."""

    def digests(self) -> tuple[str, ...]:
        """``sha256:…`` of each file of the latest content."""

    def source(self) -> Source:
        """The latest content, checked again. Raises ScopeError."""

    def archive(self) -> Path | None:
        """The latest content as one file, to be kept with what was made from it."""

    def vouch(self, archive: Path, source: Source) -> None:
        """Checks a kept source against the archive that it came from. Raises ScopeError."""

    def forget_others(self) -> None:
        """Drops all but the latest."""

    def status(self) -> FeedStatus: ...


@dataclass(frozen=True, slots=True)
class Cause:
    """Who wants something, by which way, and why."""

    trigger: str
    actor: str
    reason: str | None = None

    def fields(self) -> dict[str, object]:
        return {"trigger": self.trigger, "actor": self.actor, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a reload reads beside the policies, checked but not taken up yet.

    Attributes:
        commit: takes it up, once the policies are sound too; what it raises refuses the reload.
        note: what only a restart would take up, in words.
    """

    commit: Callable[[], None] = lambda: None
    note: str | None = None


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
