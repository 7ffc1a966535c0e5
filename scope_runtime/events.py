"""Event v1: what the runtime did, as records that every sink (audit log, metrics, alerts) reads.

The hook's ring holds numbers; ``EventReader`` puts names to them. The shape of a record is a contract
(docs/how-it-works.md): keys may be added, never renamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scope_runtime.native.abi import RawEvent
from scope_runtime.native.hook import Span
from scope_runtime.policy.model import Keep
from scope_runtime.program import Program
from scope_runtime.types import StrEnum

if TYPE_CHECKING:
    from scope_runtime.select import ProgramSource

EVENT_VERSION = 1
EMBEDDING_TASK = "embedding"
"""``task`` in the summary of a request that asked for a vector; an answer's has none."""
_NO_RULE = 0xFFFFFFFF


class Kind(StrEnum):
    """What an event is about."""

    REQUEST = "request"
    ALERT = "alert"
    POLICY = "policy"
    RUNTIME = "runtime"


class _Raw:
    """``scope_event_kind`` of scope_hook.h."""

    ALERT_FIRING = 1
    ALERT_RESOLVED = 2
    SUMMARY = 3
    REQUEST_END = 4
    DOSE_EXCESS = 5


@dataclass(frozen=True, slots=True)
class RevisionSpan:
    """From this position on the sequence's residuals were computed under this revision (``none``: unsteered)."""

    revision: str
    from_position: int


@dataclass(frozen=True, slots=True)
class Content:
    """A prompt or an output that a policy wants on record. No part of a record: what a sink may do with it, it says.

    Attributes:
        name: ``prompt`` or ``output``.
        tokens: its token ids; ``text`` is what they say, control tokens written out in a prompt.
        keep: ``keep`` or ``commit``.
    """

    name: str
    tokens: tuple[int, ...]
    text: str
    keep: Keep


@dataclass(frozen=True, slots=True)
class Event:
    """One record. ``what`` says which of its kind: ``summary``, ``rule``, ``firing``, ``loaded``, ``start`` …

    Attributes:
        time: seconds since the epoch.
        detail: keys that only some kinds have: counts, activations, doses, errors.
        contents: for the audit log alone; ``record`` is without them.
    """

    kind: Kind
    what: str
    time: float
    request_id: str | None = None
    sequence: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    revisions: tuple[RevisionSpan, ...] = ()
    rule: str | None = None
    op: str | None = None
    layer: int | None = None
    features: tuple[str, ...] = ()
    mode: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    contents: tuple[Content, ...] = field(default=(), repr=False)

    def record(self) -> dict[str, Any]:
        """The event as JSON-ready data, absent keys left out."""
        out: dict[str, Any] = {
            "v": EVENT_VERSION,
            "time": round(self.time, 6),
            "kind": str(self.kind),
            "what": self.what,
        }
        for key in ("request_id", "sequence", "rule", "op", "layer", "mode"):
            value = getattr(self, key)
            if value is not None:
                out[key] = str(value) if isinstance(value, StrEnum) else value
        if self.labels:
            out["labels"] = dict(self.labels)
        if self.revisions:
            out["revisions"] = [
                {"revision": s.revision, "from_position": s.from_position} for s in self.revisions
            ]
        if self.features:
            out["features"] = list(self.features)
        out.update(self.detail)
        return out


class Sink(Protocol):
    """Where events go. A sink that cannot keep an event raises: losing evidence silently is not an option."""

    def write(self, events: Sequence[Event]) -> None:
        """Takes events in order; returns when they are as safe as the sink promises."""

    def close(self) -> None: ...


class RequestContext(NamedTuple):
    """What the engine knows of a running request and the hook does not.

    Attributes:
        trial: policies of its own, which no other request runs under.
    """

    labels: Mapping[str, str]
    request_id: str
    trial: ProgramSource | None = None


class EventReader:
    """Turns the ring's numbers into events.

    Args:
        programs: serial to program, every one that may still be named in the ring.
        model_digest: of the model file, for ``digests``.
    """

    def __init__(self, programs: Mapping[int, Program], model_digest: str) -> None:
        self._programs = programs
        self._model_digest = model_digest

    def digests(self, program: Program | None) -> dict[str, Any]:
        out: dict[str, Any] = {"model": self._model_digest}
        if program is not None and program.packs:
            out["packs"] = dict(program.packs)
        return {"digests": out}

    def revisions(self, spans: Sequence[Span]) -> tuple[RevisionSpan, ...]:
        """Spans of serials as spans of revisions; neighbours of one revision are one."""
        out: list[RevisionSpan] = []
        for span in spans:
            program = self._programs.get(span.serial)
            revision = program.revision if program else ("none" if span.serial == 0 else "unknown")
            if not out or out[-1].revision != revision:
                out.append(RevisionSpan(revision, span.first))
        return tuple(out)

    def event(
        self, raw: RawEvent, request: RequestContext | None, revisions: tuple[RevisionSpan, ...]
    ) -> Event | None:
        """One ring entry as an event; None for what the engine reports itself (the request's end)."""
        if raw.kind == _Raw.REQUEST_END:
            return None
        program = self._programs.get(raw.serial)
        rule = (
            program.rules[raw.rule]
            if program is not None and raw.rule != _NO_RULE and raw.rule < len(program.rules)
            else None
        )
        what = {
            _Raw.ALERT_FIRING: "firing",
            _Raw.ALERT_RESOLVED: "resolved",
            _Raw.SUMMARY: "rule",
            _Raw.DOSE_EXCESS: "dose-excess",
        }.get(raw.kind, f"unknown-{raw.kind}")
        kind = Kind.REQUEST if raw.kind == _Raw.SUMMARY else Kind.ALERT
        detail: dict[str, Any] = {}
        if program is not None:
            detail["revision"] = program.revision
            if rule is not None:
                detail["policy"] = rule.policy or program.policy
        if kind is Kind.REQUEST:
            detail |= _summary(raw)
        else:
            detail |= {
                "position": raw.first_position,
                "activation": {"max": _number(raw.activation_max)},
            }
            if raw.kind == _Raw.DOSE_EXCESS:
                detail["dose"] = {"max": _number(raw.dose_max)}
            if rule is not None and rule.alert is not None:
                detail["severity"] = str(rule.alert.severity)
                detail["actions"] = [str(a) for a in rule.alert.actions]
        if request is not None and request.trial is not None:
            detail["trial"] = True
        detail |= self.digests(program)
        return Event(
            kind=kind,
            what=what,
            time=raw.time_ns / 1e9,
            request_id=request.request_id if request else None,
            sequence=raw.sequence,
            labels=request.labels if request else {},
            revisions=revisions,
            rule=rule.name if rule else None,
            op=str(rule.op) if rule else None,
            layer=raw.layer if raw.layer >= -1 else None,
            features=tuple(map(str, rule.targets)) if rule else (),
            mode=str(rule.mode) if rule else None,
            detail=detail,
        )


def _summary(raw: RawEvent) -> dict[str, Any]:
    return {
        "n_tokens": raw.n_tokens,
        "n_fired": raw.n_fired,
        "n_limited": raw.n_limited,
        "activation": {
            "max": _number(raw.activation_max) if raw.n_measured else None,
            "mean": _number(raw.activation_sum / raw.n_measured) if raw.n_measured else None,
        },
        "dose": {
            "max": _number(raw.dose_max) if raw.n_fired else 0.0,
            "mean": _number(raw.dose_sum / raw.n_fired) if raw.n_fired else 0.0,
        },
        "positions": {"first": raw.first_position, "last": raw.last_position}
        if raw.n_fired
        else None,
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
