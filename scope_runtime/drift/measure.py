"""What a request's records say about each rule: one small vector a request and rule.

A rule's measurements are those of the features that it acts on or watches: of a group, what its events say of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scope_runtime.drift.statistics import Floats
from scope_runtime.errors import ScopeError

MEASURES = ("rate", "mean", "max")
"""Of one request: share of tokens at which the rule acted or its alert was met, and the activation's mean and max."""

_MOST_OPEN = 4096
_MOST_NAMES = 10_000


class DriftError(ScopeError):
    """Requests that cannot be measured against each other."""


@dataclass(frozen=True, slots=True, order=True)
class Watched:
    """A rule whose features are measured, as far as it decides what its measurements mean.

    Attributes:
        policy: the policy's name; empty where the records do not say.
        features: in words, with layer and id.
    """

    policy: str
    rule: str
    op: str
    mode: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.policy}/{self.rule}" if self.policy else self.rule

    def same_rule(self, other: Watched) -> bool:
        """Whether both go by one name, whatever they measure."""
        return self.rule == other.rule and (
            self.policy == other.policy or not self.policy or not other.policy
        )

    def same_measure(self, other: Watched) -> bool:
        return self.same_rule(other) and self.parts() == other.parts()

    def parts(self) -> tuple[object, ...]:
        return self.op, self.mode, self.features


@dataclass(frozen=True, slots=True)
class Request:
    """One finished request: per rule its measurements, in the order of MEASURES.

    Attributes:
        packs: digests of every pack of the program.
    """

    time: float
    model: str
    packs: frozenset[str]
    revisions: frozenset[str]
    measured: Mapping[Watched, tuple[float, float, float]]


@dataclass(slots=True)
class _Part:
    """What a request's records said of a rule so far; there is one record for each revision."""

    n_tokens: int = 0
    n_fired: int = 0
    total: float = 0.0
    largest: float = -math.inf


@dataclass(slots=True)
class _Open:
    """A request whose summary has not come yet."""

    parts: dict[Watched, _Part] = field(default_factory=dict)
    packs: set[str] = field(default_factory=set)
    revisions: set[str] = field(default_factory=set)


class Collector:
    """Puts records (`Event.record`, or an audit log's) together to requests.

    Args:
        labels: only requests with all of these.

    Attributes:
        n_forgotten: requests that were given up because too many were open at once.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._labels = dict(labels or {})
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()
        self.n_forgotten = 0

    def add(self, record: Mapping[str, Any]) -> Request | None:
        """One record; the request, if it was its last and anything was measured in it."""
        kind, what = record.get("kind"), record.get("what")
        if kind == "policy":
            self._learn(record)
        elif kind == "request":
            request_id = record.get("request_id")
            if isinstance(request_id, str) and not record.get("trial"):
                if what == "rule":
                    self._rule(request_id, record)
                elif what == "summary":
                    return self._done(self._open.pop(request_id, None), record)
        return None

    def _learn(self, record: Mapping[str, Any]) -> None:
        """A lone policy's rules do not say its name, but what is said when it is taken up does."""
        revision, name = record.get("revision"), record.get("name")
        if isinstance(revision, str) and isinstance(name, str) and not record.get("policies"):
            self._names[revision] = name
            if len(self._names) > _MOST_NAMES:
                self._names.popitem(last=False)

    def _rule(self, request_id: str, record: Mapping[str, Any]) -> None:
        activation = record.get("activation")
        n_tokens, n_fired = _count(record.get("n_tokens")), _count(record.get("n_fired"))
        mean, largest = (
            _number(activation.get(key)) if isinstance(activation, dict) else None
            for key in ("mean", "max")
        )
        rule, features = record.get("rule"), record.get("features")
        if mean is None or largest is None or not n_tokens or n_fired is None:
            return  # not measured, or at no token
        if not isinstance(rule, str) or not isinstance(features, list):
            return
        open_ = self._open.setdefault(request_id, _Open())
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
            self.n_forgotten += 1
        revision = record.get("revision")
        policy = record.get("policy") or self._names.get(str(revision)) or ""
        key = Watched(
            str(policy),
            rule,
            str(record.get("op")),
            str(record.get("mode")),
            tuple(map(str, features)),
        )
        part = open_.parts.setdefault(key, _Part())
        part.n_tokens += n_tokens
        part.n_fired += n_fired
        part.total += mean * n_tokens
        part.largest = max(part.largest, largest)
        open_.packs |= _digests(record).get("packs", frozenset())
        if isinstance(revision, str):
            open_.revisions.add(revision)

    def _done(self, open_: _Open | None, record: Mapping[str, Any]) -> Request | None:
        time, labels = _number(record.get("time")), record.get("labels")
        if open_ is None or time is None:
            return None
        has = labels if isinstance(labels, dict) else {}
        if any(has.get(key) != value for key, value in self._labels.items()):
            return None
        model = _digests(record).get("model", frozenset())
        return Request(
            time,
            next(iter(model), ""),
            frozenset(open_.packs),
            frozenset(open_.revisions),
            {
                key: (
                    _six(part.n_fired / part.n_tokens),
                    _six(part.total / part.n_tokens),
                    _six(part.largest),
                )
                for key, part in open_.parts.items()
            },
        )


def _digests(record: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Digests of the model and of packs; not the packs' names, which change with where they lie."""
    found = record.get("digests")
    if not isinstance(found, dict):
        return {}
    packs = found.get("packs")
    return {
        "model": frozenset({found["model"]} if isinstance(found.get("model"), str) else ()),
        "packs": frozenset(map(str, packs.values())) if isinstance(packs, dict) else frozenset(),
    }


def _six(value: float) -> float:
    """Six digits, as records have: what came about in another order is the same number all the same."""
    return float(f"{value:.6g}")


def _number(value: object) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Requests side by side.

    Attributes:
        times: when each ended, seconds since the epoch, (n,).
        model: the digest of the model that answered them.
        packs, revisions: of all of them.
        measured: per rule (n, 3) in the order of MEASURES, NaN where a request did not get it.
    """

    times: Floats
    model: str
    packs: frozenset[str]
    revisions: frozenset[str]
    measured: Mapping[Watched, Floats]

    def count(self, rule: Watched) -> int:
        """Requests that got the rule."""
        return int((~np.isnan(self.measured[rule][:, 0])).sum()) if rule in self.measured else 0

    def find(self, rule: Watched) -> Watched | None:
        """The rule that measures the same, if the sample has it."""
        return next((mine for mine in self.measured if mine.same_measure(rule)), None)


def sample(requests: Iterable[Request]) -> Sample:
    """Puts requests side by side, oldest first.

    Raises:
        DriftError: they are of several models, or what a rule measures changed among them.
    """
    found: Sequence[Request] = sorted(requests, key=lambda request: request.time)
    models = sorted({request.model for request in found})
    if len(models) > 1:
        raise DriftError(
            "the requests are of several models",
            found=", ".join(models),
            hint="Take a time in which there was one (--since, --until)",
        )
    rules: list[Watched] = []
    as_: dict[Watched, Watched] = {}
    for key in sorted({key for request in found for key in request.measured}, reverse=True):
        # Sorted so that the key that knows its policy comes before the one that does not.
        other = next((rule for rule in rules if rule.same_rule(key)), None)
        if other is None:
            rules.append(key)
        elif other.parts() != key.parts():
            raise DriftError(
                f"what {key.name} measures changed among the requests",
                found=f"{describe(key)}, and {describe(other)}",
                hint="Take a time in which it did not (--since, --until)",
            )
        as_[key] = other or key
    measured = {rule: np.full((len(found), len(MEASURES)), np.nan) for rule in sorted(rules)}
    for i, request in enumerate(found):
        for key, values in request.measured.items():
            measured[as_[key]][i] = values
    return Sample(
        np.array([request.time for request in found], np.float64),
        models[0] if models else "",
        frozenset().union(*(request.packs for request in found)),
        frozenset().union(*(request.revisions for request in found)),
        measured,
    )


def describe(rule: Watched) -> str:
    """What a rule measures, in words."""
    return f"{rule.op} of {', '.join(rule.features)} in mode {rule.mode}"
