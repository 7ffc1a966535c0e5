"""A token that is taken back leaves no alert behind: from the hook's memory to what a receiver is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from scope_runtime.compile import compile_policy
from scope_runtime.events import Event, EventReader, RequestContext
from scope_runtime.llama import library
from scope_runtime.llama.context import Context
from scope_runtime.merge import unmerged
from scope_runtime.policy.load import load_policy
from scope_runtime.program import Program
from scope_runtime.runtime import Runtime
from tests.alerts.conftest import Desk, ended
from tests.conftest import Tiny
from tests.support.hooked_llama import hooked_llama

library.load()
PROMPT = [5, 17, 33, 80]
KEPT = 41
REQUEST = RequestContext({"tenant": "acme"}, "r1")


def watching(tiny: Tiny, tmp_path: Path, above: float) -> Path:
    """Watches the answer alone, for the webhook."""
    text = tiny.policy.read_text().replace(
        "above: -1.0}",
        f"above: {above!r}, when: {{phase: generation}}, actions: [log, webhook]}}",
    )
    path = tiny.policy.with_name(f"{tmp_path.name}.yaml")
    path.write_text(text)
    return path


class Spoken:
    """A hooked context with an open request, whose events go to an alert book as the engine's do."""

    def __init__(self, context: Context, policy: Path, desk: Desk) -> None:
        loaded = load_policy(policy)
        program: Program = unmerged(compile_policy(loaded, context.shape), (loaded,), "sha256:1")
        serial = context.live_hook.install(program.blob)
        self.reader = EventReader({serial: program}, "sha256:model")
        self.context, self.desk = context, desk
        self.book = desk.open(request_labels=("tenant",), window_s=60)
        context.live_hook.request_begin(0, 1, len(PROMPT))
        self.decode(PROMPT, 0)

    def decode(self, tokens: list[int], first: int) -> None:
        self.context.decode(tokens, first)
        self.collect()

    def collect(self) -> None:
        events = [self.reader.event(raw, REQUEST, ()) for raw in self.context.live_hook.drain()]
        self.book.observe([event for event in events if isinstance(event, Event)])

    def end(self) -> None:
        self.context.live_hook.request_end(0)
        self.collect()
        self.book.observe([ended("r1")])
        self.desk.run(self.book, 300)


def standing_out(tiny: Tiny, tmp_path: Path) -> tuple[list[int], float]:
    """A draft one of whose later tokens exceeds a value that nothing does that is kept; and that value."""
    with hooked_llama(tiny.model, watching(tiny, tmp_path, -1e9)) as context:
        hook, first = context.live_hook, len(PROMPT)

        def highest(begin: int, end: int) -> float:
            rows = [hook.measured(0, position, 3) for position in range(begin, end)]
            return max(float(row.activation[2]) for row in rows if row is not None)

        hook.request_begin(0, 1, first)
        context.decode(PROMPT, 0)
        context.decode([KEPT], first)
        context.decode([KEPT], first + 1)
        kept = highest(first - 1, first + 2)
        for token in range(context.n_vocab - 1):
            context.forget(0, first + 1)
            context.decode([token, token + 1], first + 1, all_logits=True)
            drafted = highest(first + 1, first + 3)
            if drafted > kept + 0.01:
                return [KEPT, token, token + 1], (drafted + kept) / 2
    raise AssertionError("no token stands out")


@pytest.mark.parametrize("rejected", [True, False])
def test_a_rejected_draft_raises_no_alert_an_accepted_one_does(
    tiny: Tiny, desk: Desk, tmp_path: Path, rejected: bool
) -> None:
    """Speculative decoding: a draft is computed in one batch, and what verification rejects is removed."""
    draft, above = standing_out(tiny, tmp_path)
    policy = watching(tiny, tmp_path, above)
    with hooked_llama(tiny.model, policy) as context:
        spoken = Spoken(context, policy, desk)
        first = len(PROMPT)
        context.decode(draft, first, all_logits=True)
        spoken.collect()
        if rejected:
            context.forget(0, first + 1)
            spoken.decode([KEPT], first + 1)
        spoken.end()
    if rejected:
        assert desk.tried == []
        assert desk.records == []
        assert spoken.book.status()["alerts"] == []
    else:
        assert desk.said() == [("firing", ["watch:firing"]), ("resolved", ["watch:resolved"])]
        labels = desk.got[0]["alerts"][0]["labels"]
        assert labels == {
            "alertname": "watch",
            "policy": "tiny",
            "severity": "warning",
            "tenant": "acme",
        }


def test_a_runtime_tells_its_alerts(tiny: Tiny, desk: Desk, tmp_path: Path) -> None:
    """The engine's own events, through the runtime's sinks; what came of it is on the runtime's record."""
    policy = watching(tiny, tmp_path, -1e9)
    book = desk.open(window_s=60)

    class Sink:
        def write(self, events: list[Event]) -> None:
            book.observe(events)

        def close(self) -> None:
            book.close()

    with Runtime(tiny.model, policy, sinks=[Sink()], n_ctx=128, n_threads=1) as runtime:
        book.bind(runtime.write)
        runtime.generate(PROMPT, max_tokens=4, temperature=0.0, request_id="q-1")
        desk.do(book)
        (body,) = desk.got
        (alert,) = body["alerts"]
        assert (alert["labels"]["policy"], alert["status"]) == ("tiny", "firing")
        assert alert["annotations"]["request_id"] == "q-1"
        assert alert["annotations"]["revision"] == runtime.program.revision
        runtime.generate(PROMPT, max_tokens=4, temperature=0.0)
        desk.do(book)
        assert len(desk.got) == 1  # it still fires: no news
        desk.run(book, 100)
        assert desk.said()[1:] == [("resolved", ["watch:resolved"])]
        own = [
            event.what
            for event in runtime.events()
            if event.what in ("raised", "cleared", "notified")
        ]
        assert own == ["raised", "notified", "cleared", "notified"]
