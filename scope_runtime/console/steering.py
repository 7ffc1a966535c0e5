"""The console's routes that look into the model, and try and save policies.

GET  /-/features?search=   what there is to steer by, in the policies' directory
GET  /-/compare            what texts can be compared by
POST /-/compare            which features differ between two texts (scope compare)
POST /-/draft              sliders → a policy's text, checked (scope check)
POST /-/try                one question, without the policy and with it, streamed
POST /-/edit               what saving a file would change (scope diff); nothing is written
POST /-/save               writes it and reloads (scope reload)
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from scope_runtime.console import tries
from scope_runtime.console.compare import CompareBody, Comparing
from scope_runtime.console.drafts import Body, Draft, text_of
from scope_runtime.console.features import Shelf
from scope_runtime.diff import diff_data, policy_diff
from scope_runtime.lifecycle.control import actor_of
from scope_runtime.lifecycle.edit import folder_of, parse_beside, prepare, save
from scope_runtime.lifecycle.hosted import Hosted
from scope_runtime.lifecycle.types import Cause
from scope_runtime.policy.model import Policy
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.respond import EventStream

TRIGGER = "console"


class EditBody(Body):
    """A policy file as it is to be."""

    file: str
    text: str


class SaveBody(EditBody):
    """The same, after a look at the difference: ``expected`` is the digest that this was shown against."""

    expected: str | None
    reason: str | None = None


def add_steering(app: FastAPI, hosted: Hosted, gateway: Gateway) -> None:
    """Adds the routes to the control channel's."""
    lifecycle = hosted.lifecycle
    source = lifecycle.source
    folder = source.path if source.path.is_dir() else source.path.parent
    shelf = Shelf(folder, hosted.bench.shape)

    def parsed(text: str) -> Policy:
        return parse_beside(lifecycle.source, folder, tries.FILE, text)

    comparing = Comparing(gateway.options.sae)

    @app.get("/-/compare")
    def about_comparing() -> dict[str, Any]:
        return comparing.about(gateway.engine)

    @app.post("/-/compare")
    def compare(asked: CompareBody) -> dict[str, Any]:
        return comparing.compare(gateway.engine, asked)

    @app.get("/-/features")
    def features(search: str = "") -> dict[str, Any]:
        return shelf.find(search)

    @app.post("/-/draft")
    def draft(wanted: Draft) -> dict[str, Any]:
        known = next((p for p in lifecycle.current.policies if p.name == wanted.name), None)
        wanted.generation = 1 if known is None else (known.generation or 0) + 1
        text = text_of(wanted)
        parsed(text)
        file = f"{wanted.name}.yaml" if known is None else Path(known.file).name
        return {"text": text, "file": file, "replaces": known is not None}

    @app.post("/-/try")
    async def try_policy(request: Request, body: tries.TryBody) -> Response:
        engine = gateway.engine

        def compiled() -> list[Ask]:
            trial = parsed(body.policy)
            arms = tries.sources(engine, lifecycle, trial, body.on_top)
            asks = tries.asks_of(body, arms, request.state.request_id)
            cause = Cause(TRIGGER, actor_of(request))
            tries.record(lifecycle, trial, arms[1], asks, cause)
            return asks

        asks = await asyncio.to_thread(compiled)
        job = gateway.job(engine.answer, asks, body.labels, request.state.holder)
        return EventStream(tries.told(job.items()), job, {})

    @app.post("/-/edit")
    def edit(body: EditBody) -> dict[str, Any]:
        made = prepare(hosted, body.file, body.text)
        return {
            "file": str(made.path),
            "digest": made.digest,
            "lines": made.lines(),
            "diff": diff_data(policy_diff(lifecycle.current, made.programs)),
        }

    @app.post("/-/save")
    def save_policy(request: Request, body: SaveBody) -> dict[str, Any]:
        cause = Cause(TRIGGER, actor_of(request), body.reason)
        outcome = save(hosted, prepare(hosted, body.file, body.text), body.expected, cause)
        return {
            "file": str(folder_of(hosted) / body.file),
            "revision": outcome.revision,
            "previous": outcome.previous,
            "changed": outcome.changed,
            "note": outcome.note,
        }
