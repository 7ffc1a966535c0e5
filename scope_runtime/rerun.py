"""A logged request run again: under the policies that it ran under, and under others, and what is different then."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from scope_runtime.audit.logged import Figures, Logged, RuleName, differing, rule_figures
from scope_runtime.errors import Location, UsageError
from scope_runtime.lifecycle.state import State
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.policy.load import load_policies
from scope_runtime.policy.model import Policy
from scope_runtime.runtime import Runtime
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape

NONE = "none"


@dataclass(frozen=True, slots=True)
class Answered:
    """A run.

    Attributes:
        revision: that all of it was computed under.
        rules: what each did.
    """

    revision: str
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    rules: Mapping[RuleName, Figures]
    n_reused: int


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule in two runs; None where it was not part of one."""

    policy: str
    rule: str
    before: Figures | None
    after: Figures | None

    @property
    def same(self) -> bool:
        return self.before == self.after


@dataclass(frozen=True, slots=True)
class Rerun:
    """What came of a replay.

    Attributes:
        reproduced: whether the answer is the logged one, token by token; None where the log cannot tell.
        first_difference: index of the first token of the answer that is another; None where there is none, or the log
            has no tokens to compare with.
        rules: the log's figures beside the replay's.
        against: the run under other policies, its rules beside the replay's; None where none were asked for.
        notes: what keeps the replay from being the same run.
    """

    logged: Logged
    replayed: Answered
    reproduced: bool | None
    first_difference: int | None
    rules: tuple[RuleChange, ...]
    against: Answered | None = None
    against_difference: int | None = None
    against_rules: tuple[RuleChange, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Where:
    """Where policies come from: files, or a revision in a state directory; neither is no policy.

    Attributes:
        policies: a file or a directory.
        root: that files named by policies must lie in.
    """

    policies: Path | None = None
    root: Path | None = None
    state: Path | None = None
    revision: str | None = None

    def load(self) -> tuple[Policy, ...]:
        """Raises: ScopeError."""
        if self.policies is not None:
            return load_policies(self.policies, root=self.root)
        if self.state is None or self.revision in (None, NONE):
            return ()
        if not self.state.is_dir():
            raise UsageError("no such state directory", found=str(self.state))
        source = State(self.state).source_of(str(self.revision))
        return load_policies(source.path, root=source.root)


@dataclass(slots=True)
class Replay:
    """How a request is run again.

    Attributes:
        recorded: the policies that it ran under.
        against: others; None for none.
        grammar: that the answer had to follow; the record has its digest alone.
        n_ctx: tokens of context; by default as many as the request can need.
    """

    model: Path
    recorded: Where
    against: Where | None = None
    grammar: str = ""
    n_ctx: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int = 0
    notes: list[str] = field(default_factory=list)

    def run(self, logged: Logged) -> Rerun:
        """Runs it, once or twice.

        Raises:
            UsageError: model, policies or grammar are not the ones on record, or several revisions took part.
        """
        sampling = self._sampling(logged)
        recorded, against = self._check(logged)
        n_most = min(sampling["max_tokens"], max(2 * logged.n_answer, 1024))
        n_ctx = self.n_ctx or -(-(len(logged.prompt) + n_most + 8) // 256) * 256
        with Runtime(
            self.model, n_ctx=n_ctx, n_threads=self.n_threads, n_gpu_layers=self.n_gpu_layers
        ) as runtime:
            replayed = self._answer(runtime, recorded, logged, sampling | _end(logged))
            other = None
            if against is not None:
                other = self._answer(runtime, against, logged, sampling, reuse=False)
        return self._compared(logged, replayed, other)

    # -- before the model is read

    def _sampling(self, logged: Logged) -> dict[str, Any]:
        said = dict(logged.sampling)
        if said.pop("n_stop", 0):
            self.notes.append("the request had stop texts, which are not on record")
        digest = said.pop("grammar", None)
        given = f"sha256:{hashlib.sha256(self.grammar.encode()).hexdigest()}"
        if digest is not None and digest != given:
            raise UsageError(
                "the answer had to follow a grammar, which the record has by its digest alone",
                found=given if self.grammar else "no grammar",
                expected=digest,
                hint="Give it with --grammar FILE",
            )
        if "logit_bias" in said:
            said["logit_bias"] = {int(token): bias for token, bias in said["logit_bias"].items()}
        return said | {"grammar": self.grammar if digest is not None else ""}

    def _check(self, logged: Logged) -> tuple[ProgramSource, ProgramSource | None]:
        """Holds what was given against the record."""
        if len(logged.revisions) != 1:
            spans = ", ".join(f"{name} from position {first}" for name, first in logged.revisions)
            raise UsageError(
                "the request cannot be run again as it was: several revisions took part",
                found=spans or "none",
                hint="A reload reached it while it ran; requests before and after it can be replayed",
            )
        info = check_model(self.model)
        found = f"sha256:{model_digest(info)}"
        if found != logged.model:
            raise UsageError(
                "this is not the model that the request ran on",
                location=Location(str(self.model)),
                found=found,
                expected=logged.model,
            )
        shape = ModelShape(info.architecture, info.n_layer, info.n_embd)
        [(revision, _)] = logged.revisions
        recorded = self._source(self.recorded, shape, logged)
        if recorded.revision != revision:
            place = self.recorded.policies or self.recorded.state
            raise UsageError(
                "these are not the policies that the request ran under",
                location=Location(str(place)) if place else None,
                found=recorded.revision,
                expected=revision,
                hint="Give them with --policies, or a state directory that keeps them with --state",
            )
        program = recorded.for_request(logged.labels, logged.request_id)
        if dict(program.packs) != dict(logged.packs):
            raise UsageError(
                "these are not the packs that the request ran under",
                found=_listed(dict(program.packs)),
                expected=_listed(logged.packs),
            )
        against = self._source(self.against, shape, logged) if self.against is not None else None
        return recorded, against

    def _source(self, where: Where, shape: ModelShape, logged: Logged) -> ProgramSource:
        return ProgramSource(where.load() or None, shape, today=_day(logged))

    # -- on the model

    def _answer(
        self,
        runtime: Runtime,
        source: ProgramSource,
        logged: Logged,
        sampling: Mapping[str, Any],
        *,
        reuse: bool = True,
    ) -> Answered:
        if runtime.control_vector_layers:
            source = ProgramSource(
                source.policies,
                runtime.shape,
                control_vector_layers=runtime.control_vector_layers,
                today=_day(logged),
            )
        runtime.take_up(source)
        common: dict[str, Any] = {"labels": logged.labels, "request_id": logged.request_id}
        if reuse and logged.n_reused:
            # What came from an earlier request's cache was not measured in this one; so it comes from one again.
            program = source.for_request(logged.labels, logged.request_id)
            n = logged.n_reused + (1 if program.phase_dependent else 0)
            runtime.generate(logged.prompt[:n], max_tokens=0, temperature=0.0, **common)
        answer = runtime.generate(logged.prompt, **{**sampling, **common})
        if reuse and answer.n_reused != logged.n_reused:
            self.notes.append(
                f"{answer.n_reused} tokens came from a cache, {logged.n_reused} did in the request: "
                "what rules measured cannot be compared in full"
            )
        return Answered(
            answer.revisions[-1].revision if answer.revisions else NONE,
            answer.tokens,
            answer.text,
            answer.finish_reason,
            rule_figures([event.record() for event in answer.report]),
            answer.n_reused,
        )

    def _compared(self, logged: Logged, replayed: Answered, other: Answered | None) -> Rerun:
        rules = rule_changes(logged.rules, replayed.rules)
        if logged.finish_reason == "cancelled" and any(
            each.before and each.after and each.before.n_tokens != each.after.n_tokens
            for each in rules
        ):
            self.notes.append(
                "the request was cancelled: whether its last token was still computed is not on record"
            )
        kept = logged.output.tokens if logged.output is not None else None
        place = None if kept is None else next(differing(kept, replayed.tokens), None)
        return Rerun(
            logged=logged,
            replayed=replayed,
            reproduced=logged.said(replayed.tokens),
            first_difference=place,
            rules=rules,
            against=other,
            against_difference=None
            if other is None
            else next(differing(replayed.tokens, other.tokens), None),
            against_rules=() if other is None else rule_changes(replayed.rules, other.rules),
            notes=tuple(self.notes),
        )


def rule_changes(
    before: Mapping[RuleName, Figures], after: Mapping[RuleName, Figures]
) -> tuple[RuleChange, ...]:
    """Rules of either run, those of the first one first."""
    return tuple(
        RuleChange(*name, before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
    )


def _day(logged: Logged) -> Callable[[], date]:
    """Exceptions lapse; so the day is the request's."""
    day = datetime.fromtimestamp(logged.time, timezone.utc).date()
    return lambda: day


def _end(logged: Logged) -> dict[str, Any]:
    """Where the answer's end was not the model's doing, it is where it was."""
    if logged.finish_reason == "cancelled":
        asked = itertools.count()
        return {"cancelled": lambda: next(asked) >= logged.n_answer}
    ended_by_itself = logged.finish_reason in ("stop", "abort") and "n_stop" not in logged.sampling
    return {} if ended_by_itself else {"max_tokens": logged.n_answer}


def _listed(packs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {digest}" for name, digest in sorted(packs.items())) or "none"
