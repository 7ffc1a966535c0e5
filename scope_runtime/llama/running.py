"""A request under way, and the records that it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scope_runtime.events import EMBEDDING_TASK, Content, Event, Kind, RequestContext, RevisionSpan
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.policy.model import Keep, Mode
from scope_runtime.program import Program
from scope_runtime.select import Share


@dataclass(slots=True)
class Running:
    """A request under way.

    Attributes:
        number: counts the context's requests; the hook knows the request by it.
        share: what of the policies it gets, and what it does not.
        timing: when it came, began and made its tokens.
        events: its records so far.
    """

    number: int
    request: RequestContext
    n_prompt: int
    share: Share
    timing: Timing
    events: list[Event] = field(default_factory=list)

    def summary(
        self,
        spans: tuple[RevisionSpan, ...],
        finish: str,
        *,
        sequence: int,
        program: Program,
        sampling: Sampling | None,
        n_answer: int,
        n_reused: int,
        n_dropped: int,
        digests: Mapping[str, Any],
        contents: tuple[Content, ...],
    ) -> Event:
        """The record of the request as a whole.

        Args:
            program: what its last token was computed under.
            sampling: None for an embedding, of which nothing is drawn.
            n_dropped: events that the hook had no room for, since it was made.
        """
        share = self.share
        return Event(
            kind=Kind.REQUEST,
            what="summary",
            time=time.time(),
            request_id=self.request.request_id,
            sequence=sequence,
            labels=self.request.labels,
            revisions=spans,
            mode=_mode(program),
            detail={
                "n_tokens": self.n_prompt + n_answer,
                "n_prompt": self.n_prompt,
                "n_answer": n_answer,
                "n_reused": n_reused,
                "finish_reason": finish,
                "events_dropped": n_dropped,
                "timing": self.timing.record(),
                **(
                    {"sampling": sampling.record()}
                    if sampling is not None
                    else {"task": EMBEDDING_TASK}
                ),
                **({"trial": True} if self.request.trial is not None else {}),
                **({"exempted": list(share.exempted)} if share.exempted else {}),
                **({"left_out": dict(share.left_out)} if share.left_out else {}),
                **({"rollout": dict(share.rollout)} if share.rollout else {}),
                **digests,
            },
            contents=contents,
        )

    def contents(
        self,
        prompt: Sequence[int],
        say: Callable[[Sequence[int]], str],
        answer: Sequence[int],
        answer_text: str,
    ) -> tuple[Content, ...]:
        """What the policies want on record of the request's texts; ``say`` turns the prompt into its text."""
        wanted = self.share.contents
        out = []
        if wanted.prompts not in (None, Keep.OFF):
            out.append(Content("prompt", tuple(prompt), say(prompt), Keep(wanted.prompts)))
        if wanted.outputs not in (None, Keep.OFF):
            out.append(Content("output", tuple(answer), answer_text, Keep(wanted.outputs)))
        return tuple(out)


def _mode(program: Program) -> Mode:
    """What the program does at most."""
    modes = {rule.mode for rule in program.rules}
    return next((mode for mode in (Mode.ENFORCE, Mode.AUDIT) if mode in modes), Mode.OFF)
