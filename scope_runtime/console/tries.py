"""A question asked twice at once: without a trial policy and with it, and nobody else's answer is touched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from scope_runtime.console.drafts import Body
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.types import Cause
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.sampling import Sampling
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource
from scope_runtime.serve.ask import Ask, Began, Engine, Extra, Item
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.jobs import Of
from scope_runtime.serve.respond import event
from scope_runtime.serve.shapes import finish_of

FILE = "trial.yaml"
ARMS = ("without", "with")
MAX_TOKENS = 1024


class TryMessage(Body):
    """One message of the question."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)]


class TryBody(Body):
    """What is tried, on what.

    Attributes:
        policy: its text.
        on_top: of what is in force; else beside nothing at all.
    """

    policy: str
    messages: Annotated[list[TryMessage], Field(min_length=1)]
    on_top: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 128
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Annotated[int, Field(ge=0, le=2**32 - 2)] = 1
    labels: dict[str, str] = Field(default_factory=dict)


def sources(
    engine: Engine, lifecycle: Lifecycle, trial: Policy, on_top: bool
) -> tuple[ProgramSource, ProgramSource]:
    """What is compared: all but the trial, and all with it. A policy of its name is left out of both.

    Raises:
        ApiError: 409 while steering is switched off.
        ScopeError: it cannot be carried out.
    """
    if lifecycle.switch is not None:
        raise ApiError(409, "Steering is switched off; trials are, too.", code="switched_off")
    before = [p for p in lifecycle.current.policies if p.name != trial.name] if on_top else []
    return engine.compile(before), engine.compile([*before, trial])


def asks_of(body: TryBody, arms: tuple[ProgramSource, ProgramSource], request_id: str) -> list[Ask]:
    """The two answers: the same in all but the policies."""
    ask = Ask(
        prompt=None,
        messages=tuple({"role": m.role, "content": m.content} for m in body.messages),
        sampling=Sampling(max_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
        labels=body.labels,
        request_id=request_id,
    )
    return [
        replace(ask, request_id=f"{request_id}.{name}", trial=arm)
        for name, arm in zip(ARMS, arms, strict=True)
    ]


def record(
    lifecycle: Lifecycle, trial: Policy, source: ProgramSource, asks: list[Ask], cause: Cause
) -> None:
    """Who tried what: its revision is on no disk, so what it said is on record whole."""
    lifecycle.record(
        "tried",
        cause,
        name=trial.name,
        revision=source.revisions[trial.name],
        program=source.program.digest,
        packs=dict(source.program.packs),
        text=trial.canonical,
        request_ids=[ask.request_id for ask in asks],
    )


async def told(items: AsyncGenerator[Of[Item], None]) -> AsyncIterator[bytes]:
    """Both answers as server-sent events, each with the name of its arm; an error is the last event."""
    try:
        async for of in items:
            yield event({"arm": ARMS[of.index], **_said(of)})
    except ApiError as error:
        yield event(error.body)


def _said(of: Of[Item]) -> dict[str, Any]:
    item = of.item
    if isinstance(item, Began):
        return {"began": {"revision": item.revision, "interventions": item.interventions}}
    if isinstance(item, Piece):
        return {"text": str(item)}
    if isinstance(item, Extra):
        return {"extra": dict(item.fields)}
    report = [each.record() for each in item.report]
    doses = [each["dose"]["max"] for each in report if each["what"] == "rule"]
    return {
        "done": {
            "finish_reason": finish_of(item),
            "n_prompt": item.n_prompt,
            "n_answer": item.n_answer,
            "revisions": [span.revision for span in item.revisions],
            "dose_max": max((dose for dose in doses if dose is not None), default=0.0),
            "n_limited": sum(each.get("n_limited", 0) for each in report if each["what"] == "rule"),
            "report": report,
        }
    }
