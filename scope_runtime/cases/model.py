"""A policy's test after it was read and checked: frozen data, nothing opened but the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import Location
from scope_runtime.policy.model import Policy
from scope_runtime.types import StrEnum


class AlertState(StrEnum):
    """Where an alert stood when a request ended."""

    QUIET = "quiet"
    FIRED = "fired"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds; None is open."""

    min: float | None
    max: float | None

    def holds(self, value: float | None) -> bool:
        """Whether the value lies within; one that was not measured does not."""
        if value is None:
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        if self.min is not None and self.min == self.max:
            return f"{self.min:g}"
        bounds = [
            f"{word} {value:g}"
            for word, value in (("at least", self.min), ("at most", self.max))
            if value is not None
        ]
        return " and ".join(bounds)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing that must hold, and where it is asked for.

    Attributes:
        subject: the rule it is about; empty where it is about the whole request.
        what: ``applies``, ``tokens``, ``first``, ``last``, ``activation``, ``dose``, ``alert``, ``aborts``,
            ``contains``, ``excludes``, ``matches`` or ``excludes_matches``.
        wanted: bool, Range, AlertState or text, as ``what`` asks.
        key: its path in the file.
    """

    subject: str
    what: str
    wanted: bool | Range | AlertState | str
    location: Location
    key: str


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what must come of it; either ``recording`` or ``prompt`` is set.

    Attributes:
        recording, model: as they lie on the disk; ``model`` None: the one that the command names.
        text: number of the text in the recording.
        date: the day of the request, ``2027-01-31``; None: today.
    """

    name: str
    location: Location
    expectations: tuple[Expectation, ...]
    labels: Mapping[str, str]
    request_id: str
    recording: Path | None = None
    text: int = 0
    prompt_tokens: int | None = None
    date: str | None = None
    model: Path | None = None
    prompt: str | None = None
    system: str | None = None
    raw: bool = False
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """A whole test file with the policy that it is about."""

    file: str
    policy: Policy
    cases: tuple[Case, ...]
