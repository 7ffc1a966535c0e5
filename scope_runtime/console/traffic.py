"""What rules did in the latest requests: the events that are in memory, by rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scope_runtime.events import Event, Kind

RECENT = 48
"""Requests of which each rule's figures are told one by one."""


@dataclass(slots=True)
class _Rule:
    first: dict[str, Any]
    n_requests: int = 0
    n_tokens: int = 0
    n_fired: int = 0
    activation_max: float | None = None
    dose_max: float = 0.0
    last: float = 0.0
    recent: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        activation, dose = record["activation"]["max"], record["dose"]["max"]
        self.n_requests += 1
        self.n_tokens += record["n_tokens"]
        self.n_fired += record["n_fired"]
        if activation is not None and (
            self.activation_max is None or activation > self.activation_max
        ):
            self.activation_max = activation
        self.dose_max = max(self.dose_max, dose or 0.0)
        self.last = max(self.last, record["time"])
        share = record["n_fired"] / record["n_tokens"] if record["n_tokens"] else 0.0
        self.recent.append(
            {
                "request_id": record.get("request_id"),
                "share": round(share, 4),
                "activation": activation,
                "dose": dose,
            }
        )
        del self.recent[:-RECENT]

    def data(self) -> dict[str, Any]:
        return {
            **self.first,
            "n_requests": self.n_requests,
            "n_tokens": self.n_tokens,
            "n_fired": self.n_fired,
            "activation_max": self.activation_max,
            "dose_max": self.dose_max,
            "last": self.last,
            "recent": self.recent,
        }


def traffic(events: Iterable[Event]) -> dict[str, Any]:
    """Rule by rule: in how many requests, at how many of their tokens, how active, how hard; the latest rule first.

    Trials are no live requests.

    Args:
        events: oldest first.
    """
    rules: dict[tuple[Any, ...], _Rule] = {}
    n_requests, since = 0, None
    for event in events:
        if event.kind is not Kind.REQUEST or event.detail.get("trial"):
            continue
        since = event.time if since is None else since
        if event.what == "summary":
            n_requests += 1
        elif event.what == "rule":
            record = event.record()
            about = {key: record.get(key) for key in ("policy", "rule", "op", "mode", "layer")}
            known = rules.setdefault(
                tuple(about.values()), _Rule({**about, "features": record.get("features", [])})
            )
            known.add(record)
    ordered = sorted(rules.values(), key=lambda rule: -rule.last)
    return {"n_requests": n_requests, "since": since, "rules": [rule.data() for rule in ordered]}
