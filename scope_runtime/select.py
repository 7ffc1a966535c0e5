"""Which rules of a policy a request gets: selector, rollout and exceptions, decided once, when the request begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import date

from scope_runtime.compile import compile_policy
from scope_runtime.policy.model import Mode, Policy, Rollout
from scope_runtime.program import Program, empty_program
from scope_runtime.resolve import Artefacts, load_artefacts
from scope_runtime.types import ModelShape

Selector = tuple[tuple[str, tuple[str, ...]], ...]


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether every key of the selector has one of its values among the labels."""
    return all(labels.get(key) in values for key, values in selector)


def reached(
    rollout: Rollout, policy: str, rule: str, labels: Mapping[str, str], request_id: str
) -> bool:
    """Whether a rollout reaches this request: sticky, the same on every machine, independent between rules.

    A request without the label that the rollout goes by is not reached.
    """
    by = request_id if rollout.by == "request" else labels.get(rollout.by)
    if by is None:
        return False
    digest = hashlib.sha256(f"{policy}\0{rule}\0{by}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < rollout.percent / 100


def active_rules(
    policy: Policy, labels: Mapping[str, str], request_id: str, today: date
) -> frozenset[str]:
    """Names of the rules that a request gets."""
    if policy.selector is not None and not matches(policy.selector, labels):
        return frozenset()
    exempt = {
        name
        for exception in policy.exceptions
        if today <= date.fromisoformat(exception.until) and matches(exception.selector, labels)
        for name in exception.rules
    }
    return frozenset(
        rule.name
        for rule in policy.rules
        if rule.name not in exempt
        and (
            rule.rollout is None
            or reached(rule.rollout, policy.name, rule.name, labels, request_id)
        )
    )


class ProgramSource:
    """A policy compiled for one model, and for each set of its rules that some request gets.

    Args:
        policy: None gives the empty program to every request.
        control_vector_layers: see ``compile_policy``.
        today: the clock for exceptions that lapse.

    Raises:
        ScopeError: the whole policy cannot be carried out. A part of a policy that compiles, compiles.
    """

    def __init__(
        self,
        policy: Policy | None,
        shape: ModelShape,
        *,
        control_vector_layers: frozenset[int] = frozenset(),
        today: Callable[[], date] = date.today,
    ) -> None:
        self.policy = policy
        self._shape = shape
        self._layers = control_vector_layers
        self._today = today
        self._artefacts = load_artefacts(policy) if policy is not None else Artefacts()
        self._programs: dict[frozenset[str], Program] = {}
        self.everything = (
            frozenset(rule.name for rule in policy.rules) if policy is not None else frozenset()
        )
        self.program = self._program(self.everything)

    def _program(self, rules: frozenset[str]) -> Program:
        if self.policy is None:
            return empty_program(self._shape.n_embd, self._shape.n_layer, self._shape.architecture)
        if rules not in self._programs:
            self._programs[rules] = compile_policy(
                self.policy,
                self._shape,
                artefacts=self._artefacts,
                control_vector_layers=self._layers,
                rules=rules,
            )
        return self._programs[rules]

    def for_request(self, labels: Mapping[str, str], request_id: str) -> Program:
        """The program that a request runs under."""
        if self.policy is None or self.policy.mode is Mode.OFF:
            return self.program
        return self._program(active_rules(self.policy, labels, request_id, self._today()))
