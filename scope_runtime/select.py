"""Which policies and rules a request gets: selector, rollout, exceptions, decided once, when the request begins."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone

from scope_runtime.compile import compile_policy
from scope_runtime.errors import PolicyErrors, ScopeError, UsageError
from scope_runtime.merge import check_rules, check_set, contents_of, inner, merged, unmerged
from scope_runtime.pickled import dumps
from scope_runtime.plan import plan
from scope_runtime.policy.files import named_files
from scope_runtime.policy.model import Apply, Contents, Mode, Policy, Rollout
from scope_runtime.policy.revision import revision_of, set_revision
from scope_runtime.program import Program, empty_program
from scope_runtime.resolve import Artefacts, OpenFiles, check_fit, load_artefacts
from scope_runtime.types import ModelShape

MAX_PROGRAMS = 256
"""Parts of a set of policies that are kept compiled."""

Selector = tuple[tuple[str, tuple[str, ...]], ...]


def utc_today() -> date:
    """Exceptions lapse everywhere at the same moment."""
    return datetime.now(timezone.utc).date()


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Refuses what no selector could ever match: ``5`` is not ``"5"``, and would be steered by nothing.

    Raises:
        UsageError: a label or its value is no text.
    """
    if not isinstance(labels, Mapping):
        raise UsageError("labels are no mapping", found=repr(labels)[:200])
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(
                "a label and its value are texts",
                found=f"{key!r}: {value!r}"[:200],
                expected="text",
            )
    return labels


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


def exempt_rules(policy: Policy, labels: Mapping[str, str], today: date) -> frozenset[str]:
    """Names of the rules that an exception of the policy, not yet lapsed, takes from a request."""
    return frozenset(
        name
        for exception in policy.exceptions
        if today <= date.fromisoformat(exception.until) and matches(exception.selector, labels)
        for name in exception.rules
    )


def left_out(
    policy: Policy, labels: Mapping[str, str], request_id: str, today: date
) -> dict[str, str]:
    """Rules that a request does not get, and why: ``selector``, ``exception`` or ``rollout``."""
    if policy.selector is not None and not matches(policy.selector, labels):
        return {rule.name: "selector" for rule in policy.rules}
    exempt = exempt_rules(policy, labels, today)
    out = {}
    for rule in policy.rules:
        if rule.name in exempt:
            out[rule.name] = "exception"
        elif rule.rollout is not None and not reached(
            rule.rollout, policy.name, rule.name, labels, request_id
        ):
            out[rule.name] = "rollout"
    return out


def active_rules(
    policy: Policy, labels: Mapping[str, str], request_id: str, today: date
) -> frozenset[str]:
    """Names of the rules that a request gets."""
    absent = left_out(policy, labels, request_id, today)
    return frozenset(rule.name for rule in policy.rules if rule.name not in absent)


@dataclass(frozen=True, slots=True)
class Share:
    """What a request gets of the policies, beside its program. Rules are named ``policy/rule``.

    Attributes:
        left_out: rules that it does not get, and why.
        rollout: ``in`` or ``out`` for each rule with a rollout: which arm the draw put it in, whatever else left the
            rule out.
        contents: what is kept of its prompt and output.
    """

    left_out: Mapping[str, str]
    rollout: Mapping[str, str]
    contents: Contents

    @property
    def exempted(self) -> tuple[str, ...]:
        """Rules that an exception takes from it."""
        return tuple(sorted(rule for rule, why in self.left_out.items() if why == "exception"))


class ProgramSource:
    """Policies compiled for one model, and each part and merge of them that some request gets.

    Everything is read when it is made: what becomes of the files afterwards changes nothing. It can be pickled.

    Args:
        policies: a policy, or several in force together; None gives the empty program to every request.
        control_vector_layers: see ``compile_policy``.
        today: the clock for exceptions that lapse.
        files: packs and vectors that are open already.
        trials: whether a request may bring policies of its own (``RequestContext.trial``); not while switched off.

    Attributes:
        policies: in the order of their names.
        revision: the policy's, or the set's; what every program from here bears.
        revisions: of each policy, by its name.
        file_digests: name and SHA-256 of every pack and vector that the policies name.
        program: all rules of all policies, as if some request got them all.

    Raises:
        ScopeError: a policy cannot be carried out, or two of them contradict each other. Whatever part of policies
            that compile some request gets, compiles.
    """

    def __init__(
        self,
        policies: Policy | Sequence[Policy] | None,
        shape: ModelShape,
        *,
        control_vector_layers: frozenset[int] = frozenset(),
        today: Callable[[], date] = utc_today,
        files: OpenFiles | None = None,
        trials: bool = True,
    ) -> None:
        self.trials = trials
        members = [policies] if isinstance(policies, Policy) else policies or ()
        self.policies = tuple(sorted(members, key=lambda policy: policy.name))
        self._shape = shape
        self._layers = control_vector_layers
        self._today = today
        self._programs: dict[tuple[tuple[str, ...], frozenset[str]], Program] = {}
        self.revisions: dict[str, str] = {}
        self.revision = "none"
        self._opened: Artefacts | bytes = Artefacts()
        self.file_digests: tuple[tuple[str, str], ...] = ()
        if self.policies:
            check_set(self.policies)
            self._opened = load_artefacts(merged(self.policies), files)
            self.file_digests = tuple(sorted(self._artefacts.digests()))
            self._check_members()
        self.program = self._program(
            tuple(policy.name for policy in self.policies),
            frozenset(_inner(p, r.name, self.policies) for p in self.policies for r in p.rules),
        )

    @property
    def _artefacts(self) -> Artefacts:
        if isinstance(self._opened, bytes):
            opened: Artefacts = pickle.loads(self._opened)
            self._opened = opened
        return self._opened

    def packed_files(self) -> bytes:
        """The open packs and vectors as one piece, for ``take_files`` in another process."""
        return dumps(self._artefacts)

    def take_files(self, packed: bytes) -> None:
        """Gives a source that came from another process its files; they are unpacked when a request needs them."""
        self._opened = packed

    def __getstate__(self) -> dict[str, object]:
        """Without the files: megabytes, which the other end has already or asks for (``take_files``)."""
        return {**self.__dict__, "_opened": b""}

    @property
    def apply(self) -> Apply:
        """When these policies reach a running answer: at the next request if any of them asks for that."""
        patient = any(policy.apply is Apply.NEXT_REQUEST for policy in self.policies)
        return Apply.NEXT_REQUEST if patient else Apply.NEXT_TOKEN

    def _check_members(self) -> None:
        """Every member by itself: held against the model, compiled, given its revision; then against each other."""
        digests = {name: f"sha256:{digest}" for name, digest in self.file_digests}
        plans = []
        errors: list[ScopeError] = []
        for policy in self.policies:
            try:
                check_fit(policy, _part(self._artefacts, policy), self._shape)
                plans.append((policy, plan(policy, self._artefacts, self._shape)))
            except ScopeError as error:
                errors.append(error)
            self.revisions[policy.name] = revision_of(policy, digests)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise PolicyErrors(tuple(errors))
        check_rules(plans)
        several = len(self.policies) > 1
        self.revision = (
            set_revision(self.revisions.values())
            if several
            else self.revisions[self.policies[0].name]
        )

    def _program(self, members: tuple[str, ...], rules: frozenset[str]) -> Program:
        empty = empty_program(self._shape.n_embd, self._shape.n_layer, self._shape.architecture)
        if not self.policies:
            return empty
        known = self._programs.get((members, rules))
        if known is not None:
            return known
        names = " + ".join(policy.name for policy in self.policies)
        if not members:
            program = replace(empty, policy=names, revision=self.revision)
        else:
            chosen = [p for p in self.policies if p.name in members]
            policy = merged(chosen)
            program = compile_policy(
                policy,
                self._shape,
                artefacts=_part(self._artefacts, policy),
                control_vector_layers=self._layers,
                rules=rules,
            )
            if len(self.policies) > 1:
                program = replace(unmerged(program, chosen, self.revision), policy=names)
        # Each rule with a rollout doubles the parts that requests may get; the eldest can be compiled again.
        while len(self._programs) >= MAX_PROGRAMS:
            with suppress(KeyError, RuntimeError, StopIteration):  # another thread was quicker
                del self._programs[next(iter(self._programs))]
        return self._programs.setdefault((members, rules), program)

    def for_request(self, labels: Mapping[str, str], request_id: str) -> Program:
        """The program that a request runs under: the merge of the policies whose selector matches its labels."""
        today = self._today()
        # One policy is a member even of requests that it gives no rule to: its dose limit has nothing to limit then.
        members = [
            policy
            for policy in self.policies
            if len(self.policies) == 1
            or (
                policy.mode is not Mode.OFF
                and (policy.selector is None or matches(policy.selector, labels))
            )
        ]
        rules = frozenset(
            _inner(policy, name, members)
            for policy in members
            for name in active_rules(policy, labels, request_id, today)
        )
        return self._program(tuple(policy.name for policy in members), rules)

    def share(self, labels: Mapping[str, str], request_id: str) -> Share:
        """What the request gets beside ``for_request``'s program."""
        today = self._today()
        members = [p for p in self.policies if p.selector is None or matches(p.selector, labels)]
        return Share(
            left_out={
                inner(policy, rule): why
                for policy in self.policies
                for rule, why in left_out(policy, labels, request_id, today).items()
            },
            rollout={
                inner(policy, rule.name): "in" if drawn else "out"
                for policy in members
                for rule in policy.rules
                if rule.rollout is not None
                for drawn in [reached(rule.rollout, policy.name, rule.name, labels, request_id)]
            },
            contents=contents_of([p for p in members if p.mode is not Mode.OFF]),
        )

    def exempted(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Rules that an exception takes from a request with these labels, as ``policy/rule``."""
        today = self._today()
        return tuple(
            inner(policy, name)
            for policy in self.policies
            if policy.selector is None or matches(policy.selector, labels)
            for name in sorted(exempt_rules(policy, labels, today))
        )


def _inner(policy: Policy, rule: str, members: Sequence[Policy]) -> str:
    """A rule's name in the merge of the members: a single member keeps its own names."""
    return inner(policy, rule) if len(members) > 1 else rule


def _part(artefacts: Artefacts, policy: Policy) -> Artefacts:
    """The files that one policy names."""
    names = set(named_files(policy))
    return Artefacts(
        {name: pack for name, pack in artefacts.packs.items() if name in names},
        {name: vector for name, vector in artefacts.vectors.items() if name in names},
    )
