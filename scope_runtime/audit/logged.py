"""One request as a log has it: all that is needed to run it again, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scope_runtime.audit.contents import CONTENTS, Opening, Sealed, sealed_in
from scope_runtime.audit.openings import all_openings
from scope_runtime.audit.read import Query, Record, read
from scope_runtime.audit.segments import LogFiles
from scope_runtime.errors import AuditError
from scope_runtime.events import EMBEDDING_TASK

RuleName = tuple[str, str]
"""(policy, rule); the policy is empty where the record names none."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one rule did in a request.

    Attributes:
        n_tokens: in its scope; n_fired of them acted on or above the alert's threshold.
        activation_max, activation_mean: None where nothing was measured.
        alerts: positions at which its alert began to fire.
    """

    n_tokens: int = 0
    n_fired: int = 0
    activation_max: float | None = None
    activation_mean: float | None = None
    dose_max: float | None = None
    dose_mean: float | None = None
    alerts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Logged:
    """A request.

    Attributes:
        revisions: (revision, position from which it held).
        sampling: as recorded: a seed that was used, no texts.
        prompt: token ids.
        output: None where the answer was not kept; ``sealed_output`` and ``output_salt`` where it was committed to.
    """

    index: int
    request_id: str
    time: float
    labels: Mapping[str, str]
    revisions: tuple[tuple[str, int], ...]
    model: str
    packs: Mapping[str, str]
    sampling: Mapping[str, Any]
    finish_reason: str
    n_answer: int
    n_reused: int
    rules: Mapping[RuleName, Figures]
    prompt: tuple[int, ...]
    output: Opening | None
    sealed_output: Sealed | None

    def said(self, tokens: Sequence[int]) -> bool | None:
        """Whether this was the answer; None where the log cannot tell."""
        if self.output is None or self.sealed_output is None:
            return None
        return self.output.is_of_tokens(self.sealed_output, tokens)


def logged_request(
    files: LogFiles, *, request_id: str | None = None, index: int | None = None
) -> Logged:
    """Finds a request by its id, or by the index of any of its records.

    Raises:
        AuditError: there is none, or more than one; or what is needed of it is not on record.
    """
    if request_id is None:
        request_id = _id_at(files, index)
    records = list(read(files, Query(request=request_id)))
    summaries = [n for n, record in enumerate(records) if record.get("what") == "summary"]
    if index is not None:
        # An id may come more than once: what belongs to a summary stands before it.
        summaries = [n for n in summaries if _index(records[n]) >= index][:1]
    if not summaries:
        raise AuditError("the log has no finished request of this id", found=str(request_id))
    if len(summaries) > 1:
        raise AuditError(
            "several requests have this id",
            found=f"{request_id}, records {', '.join(str(_index(records[n])) for n in summaries)}",
            hint="Name the record instead of the request",
        )
    [last] = summaries
    earlier = [n for n in range(last) if records[n].get("what") == "summary"]
    return _logged(files, records[earlier[-1] + 1 if earlier else 0 : last], records[last])


def _id_at(files: LogFiles, index: int | None) -> str:
    for record in read(files):
        if _index(record) == index:
            found = record.get("request_id")
            if record.get("kind") not in ("request", "alert") or not isinstance(found, str):
                raise AuditError(
                    f"record {index} is not of a request",
                    found=f"{record.get('kind')}/{record.get('what')}",
                )
            return found
    raise AuditError(f"there is no record {index}", found=str(files.path))


def _index(record: Record) -> int:
    return int(record["chain"]["index"])


def _logged(files: LogFiles, others: Sequence[Record], summary: Record) -> Logged:
    if summary.get("task") == EMBEDDING_TASK:
        raise AuditError(
            f"record {_index(summary)} is of an embedding: it has no answer that could be replayed"
        )
    sealed = {each.name: each for each in sealed_in(summary)}
    found = all_openings(files, {each.text for each in sealed.values()})
    prompt = _prompt(summary, sealed.get("prompt"), found)
    output = sealed.get("output")
    opening = found.get(output.text) if output is not None else None
    if output is not None and opening is not None and not opening.opens(output):
        raise _altered("output", summary)
    try:
        return Logged(
            index=_index(summary),
            request_id=summary["request_id"],
            time=float(summary["time"]),
            labels=dict(summary.get("labels", {})),
            revisions=tuple((s["revision"], s["from_position"]) for s in summary["revisions"]),
            model=summary["digests"]["model"],
            packs=dict(summary["digests"].get("packs", {})),
            sampling=dict(summary["sampling"]),
            finish_reason=summary["finish_reason"],
            n_answer=summary["n_answer"],
            n_reused=summary["n_reused"],
            rules=rule_figures(others),
            prompt=prompt,
            output=opening,
            sealed_output=output,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AuditError(
            f"record {_index(summary)} does not say all that a replay needs",
            found=f"no sound {error}",
            hint="Was it written by an earlier version?",
        ) from None


def _prompt(
    summary: Record, sealed: Sealed | None, found: Mapping[str, Opening]
) -> tuple[int, ...]:
    opening = found.get(sealed.text) if sealed is not None else None
    if sealed is None or opening is None or opening.tokens is None:
        why = "no policy asked for it"
        if isinstance(summary.get(CONTENTS), dict) and sealed is not None:
            why = "it was redacted" if opening is None else "only a commitment was"
        raise AuditError(
            "the request cannot be run again: its prompt is not kept",
            found=why,
            hint="A policy keeps prompts from the next request on with audit: {prompts: keep}",
        )
    if not opening.opens(sealed):
        raise _altered("prompt", summary)
    return opening.tokens


def _altered(name: str, summary: Record) -> AuditError:
    return AuditError(
        f"the {name} that is kept is not the one that record {_index(summary)} commits to",
        hint="scope audit verify names what was changed",
    )


def rule_figures(records: Sequence[Mapping[str, Any]]) -> dict[RuleName, Figures]:
    """What each rule did, by the records of a request."""
    found: dict[RuleName, Figures] = {}
    alerts: dict[RuleName, list[int]] = {}
    for record in records:
        name = (str(record.get("policy", "")), str(record.get("rule")))
        if record.get("what") == "firing":
            alerts.setdefault(name, []).append(int(record["position"]))
        if record.get("what") == "rule":
            found[name] = _figures(record)
    return {
        name: Figures(
            **{key: getattr(found.get(name, Figures()), key) for key in _MEASURED},
            alerts=tuple(alerts.get(name, ())),
        )
        for name in dict.fromkeys([*found, *alerts])
    }


_MEASURED = tuple(key for key in Figures.__dataclass_fields__ if key != "alerts")


def _figures(record: Mapping[str, Any]) -> Figures:
    activation, dose = record.get("activation") or {}, record.get("dose") or {}
    return Figures(
        record.get("n_tokens", 0),
        record.get("n_fired", 0),
        activation.get("max"),
        activation.get("mean"),
        dose.get("max"),
        dose.get("mean"),
    )


def differing(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    """Places at which two token lists differ; the end of the shorter one is one."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            yield place
    if len(one) != len(other):
        yield min(len(one), len(other))
