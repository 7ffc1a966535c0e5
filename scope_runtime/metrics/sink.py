"""Events as counts: what happened, by policy and rule."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scope_runtime.events import Event, Kind
from scope_runtime.metrics import families as f
from scope_runtime.metrics.families import Family
from scope_runtime.program import Program

# Rules are as many as the policies have, but a process may live through many policies.
_MOST_RULES = 1000
FINISH_REASONS = ("stop", "length", "abort", "cancelled", "error")
_OTHER = ("(other)", "(other)")
_TAKEN_UP = frozenset({"swapped", "restored", "rolled-back", "off", "on"})


class MetricsSink:
    """Counts events into a registry. Never raises on an event's account, and never blocks on anything slow.

    Args:
        registry: where the metrics are registered; each of them once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(family: Family) -> Counter:
            return Counter(family.name, family.help, family.labels, registry=registry)

        def gauge(family: Family) -> Gauge:
            return Gauge(family.name, family.help, family.labels, registry=registry)

        def histogram(family: Family) -> Histogram:
            return Histogram(
                family.name, family.help, family.labels, registry=registry, buckets=family.buckets
            )

        self._interventions = counter(f.INTERVENTIONS)
        self._limited = counter(f.LIMITED)
        self._rule_tokens = counter(f.RULE_TOKENS)
        self._activation = histogram(f.ACTIVATION)
        self._dose = histogram(f.DOSE)
        self._dose_excess = counter(f.DOSE_EXCESS)
        self._left_out = counter(f.LEFT_OUT)
        self._exceptions = counter(f.EXCEPTIONS)
        self._revision = gauge(f.REVISION_INFO)
        self._revision_since = gauge(f.REVISION_SINCE)
        self._policy_events = counter(f.POLICY_EVENTS)
        self._firing = gauge(f.ALERT_FIRING)
        self._transitions = counter(f.ALERT_TRANSITIONS)
        self._requests = counter(f.REQUESTS)
        self._prompt_tokens = counter(f.PROMPT_TOKENS)
        self._reused_tokens = counter(f.REUSED_TOKENS)
        self._prompt_seconds = counter(f.PROMPT_SECONDS)
        self._predicted_tokens = counter(f.PREDICTED_TOKENS)
        self._predicted_seconds = counter(f.PREDICTED_SECONDS)
        self._first_token = histogram(f.FIRST_TOKEN)
        self._per_token = histogram(f.PER_TOKEN)
        self._duration = histogram(f.DURATION)
        for finish_reason in FINISH_REASONS:
            self._requests.labels(finish_reason)
        self._lock = threading.Lock()
        self._in_force: str | None = None
        self._rules: set[tuple[str, str]] = set()
        self._fires: dict[str, set[tuple[str, str, str]]] = {}

    def expect(self, program: Program) -> None:
        """Shows 0 for what these rules may come to: a counter that appears with its first event hides that event.

        Prometheus sees an increase only between two values.
        """
        with self._lock:
            for rule in program.rules:
                name = self._name(rule.policy or program.policy, rule.name)
                labels = (*name, str(rule.op), str(rule.mode))
                for counter in (self._rule_tokens, self._interventions, self._limited):
                    counter.labels(*labels)
                if rule.alert is not None:
                    alert = (*name, str(rule.alert.severity))
                    self._firing.labels(*alert)
                    for to in ("firing", "resolved"):
                        self._transitions.labels(*alert, to)

    def write(self, events: Sequence[Event]) -> None:
        """Counts them."""
        with self._lock:
            for event in events:
                if event.kind is Kind.REQUEST and event.what == "rule":
                    self._rule(event)
                elif event.kind is Kind.REQUEST and event.what == "summary":
                    self._request(event)
                elif event.kind is Kind.ALERT:
                    self._alert(event)
                elif event.kind is Kind.POLICY:
                    self._policy(event)

    def close(self) -> None:
        """Nothing to close; what was counted stays readable."""

    def _name(self, policy: str, rule: str) -> tuple[str, str]:
        """The two labels of a rule; the same two for all that are more than a registry should carry."""
        name = (policy, rule)
        if name not in self._rules:
            if len(self._rules) >= _MOST_RULES:
                return _OTHER
            self._rules.add(name)
        return name

    def _named(self, event: Event) -> tuple[str, str]:
        return self._name(str(event.detail.get("policy") or ""), event.rule or "")

    def _rule(self, event: Event) -> None:
        self._ended(event)
        policy, rule = self._named(event)
        detail, mode = event.detail, event.mode or ""
        labels = (policy, rule, event.op or "", mode)
        self._rule_tokens.labels(*labels).inc(detail["n_tokens"])
        self._interventions.labels(*labels).inc(detail["n_fired"])
        self._limited.labels(*labels).inc(detail["n_limited"])
        if (activation := detail["activation"]["max"]) is not None:
            self._activation.labels(policy, rule).observe(activation)
        # An alert pushes nothing: its doses would all be 0.
        if (
            event.op != "alert"
            and detail["n_fired"]
            and (dose := detail["dose"]["max"]) is not None
        ):
            self._dose.labels(policy, rule, mode).observe(dose)

    def _ended(self, event: Event) -> None:
        """What the rules did is told when a request ends; nothing fires in it any more."""
        for alert in self._fires.pop(event.request_id or "", ()):
            self._firing.labels(*alert).dec()

    def _request(self, event: Event) -> None:
        detail = event.detail
        self._ended(event)
        self._requests.labels(detail["finish_reason"]).inc()
        self._reused_tokens.inc(detail["n_reused"])
        self._prompt_tokens.inc(detail["n_prompt"] - detail["n_reused"])
        self._predicted_tokens.inc(detail["n_answer"])
        for path in detail.get("exempted", ()):
            self._exceptions.labels(*self._name(*_split(path))).inc()
        for path, why in detail.get("left_out", {}).items():
            self._left_out.labels(*self._name(*_split(path)), why).inc()
        self._times(detail["n_answer"], detail.get("timing", {}))

    def _times(self, n_answer: int, timing: Mapping[str, Any]) -> None:
        if not timing:
            return
        self._duration.observe(timing["duration_s"])
        self._prompt_seconds.inc(timing["prompt_s"])
        self._predicted_seconds.inc(timing["generation_s"])
        if n_answer >= 1:
            self._first_token.observe(timing["queue_s"] + timing["prompt_s"])
        if n_answer >= 2:
            self._per_token.observe(timing["generation_s"] / (n_answer - 1))

    def _alert(self, event: Event) -> None:
        if event.what == "dose-excess":
            self._dose_excess.inc()
            return
        if event.what not in ("firing", "resolved") or event.request_id is None:
            return
        alert = (*self._named(event), str(event.detail.get("severity") or ""))
        self._transitions.labels(*alert, event.what).inc()
        fires = self._fires.setdefault(event.request_id, set())
        if event.what == "firing" and alert not in fires:
            fires.add(alert)
            self._firing.labels(*alert).inc()
        elif event.what == "resolved" and alert in fires:
            fires.remove(alert)
            self._firing.labels(*alert).dec()

    def _policy(self, event: Event) -> None:
        self._policy_events.labels(event.what).inc()
        if event.what in _TAKEN_UP:
            revision = str(event.detail.get("revision") or "none")
            self._revision.labels(revision).set(1)
            self._revision_since.set(event.time)
            if self._in_force not in (None, revision):
                self._revision.remove(self._in_force)
            self._in_force = revision


def _split(path: str) -> tuple[str, str]:
    """``policy/rule`` of a request's record."""
    policy, _, rule = path.partition("/")
    return policy, rule
