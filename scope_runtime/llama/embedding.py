"""A text as one vector, computed under the policies that select it: on a context of its own, beside the answers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import Location, ModelError, ScopeError, UsageError
from scope_runtime.events import Event, EventReader, RequestContext, RevisionSpan, Sink
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.installed import Installed
from scope_runtime.llama.probe import prove
from scope_runtime.llama.running import Running
from scope_runtime.llama.timing import Timing
from scope_runtime.llama.turn import Turn
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource
from scope_runtime.types import Pooling

SEQUENCE = 0
N_BATCH = 128
"""llama.cpp computes the logits of every token, too: 600 KB each where the vocabulary is large."""

Vector = npt.NDArray[np.float32]


_OF_FILE = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST}  # llama_pooling_type


@dataclass(frozen=True, slots=True)
class Embedding:
    """One text as a vector, and what was done to it.

    Attributes:
        vector: (n_embd_out,), of length 1; empty where it was ended before it was computed.
        finish_reason: ``stop``, ``abort`` (an alert or the dose limit ended it) or ``cancelled``.
        revisions: under which policy revision it was computed, from which position on.
        report: the request's events: one per rule, and every alert.
        program: what it was computed under.
    """

    vector: Vector
    finish_reason: str
    revisions: tuple[RevisionSpan, ...]
    report: tuple[Event, ...]
    request_id: str
    n_prompt: int
    program: Program


def pooling_of(asked: Pooling, context: Context) -> Pooling:
    """What is meant for this model.

    Raises:
        ModelError: it is left to the file, and the file does not say.
    """
    if asked is not Pooling.MODEL:
        return asked
    said = context.info.pooling
    known = _OF_FILE.get(said) if said is not None else None
    if known is None:
        raise ModelError(
            "the model's file does not say how an embedding is made of a text's tokens",
            location=Location(context.info.path),
            key=f"{context.shape.architecture}.pooling_type",
            found="nothing" if said is None else str(said),
            expected="1 (mean), 2 (cls) or 3 (last)",
            hint="Say mean, cls or last instead of model: what it was trained for",
        )
    return known


class Embedder:
    """Embeddings from a model that another context has open. One text at a time; others wait their turn.

    Args:
        owner: the answers' context. No two batches are computed at once: llama.cpp's threads wait for each other
            by spinning, and two contexts' would take each other's cores.
        source: what requests get their programs from, asked at each of them.
        sink: where events go.

    Raises:
        ModelError: see ``pooling_of``, or there is no memory for a second context.
        HookError: the hook cannot prove itself on it.
    """

    def __init__(
        self,
        owner: Context,
        pooling: Pooling,
        source: Callable[[], ProgramSource],
        sink: Sink,
        model_digest: str,
    ) -> None:
        self.pooling = pooling_of(pooling, owner)
        self._owner = owner
        self._source = source
        self._sink = sink
        asked = owner.options
        options = ContextOptions(
            n_ctx=owner.n_ctx,
            n_batch=N_BATCH,
            n_ubatch=N_BATCH,
            n_gpu_layers=asked.n_gpu_layers,
            n_threads=asked.n_threads,
        )
        self.context = Context(owner.info.path, options, weights=owner)
        try:
            prove(self.context)
        except BaseException:
            self.context.close()
            raise
        self.context.give_embeddings()
        self._installed = Installed(self.context, lambda: None)
        self._reader = EventReader(self._installed.programs, model_digest)
        self._numbers = itertools.count(1)
        self._turn = Turn()

    def close(self) -> None:
        """Waits for the text under way, then frees the context. Safe to call twice."""
        with self._turn:
            self.context.close()

    def embed(
        self,
        tokens: Sequence[int],
        labels: Mapping[str, str],
        *,
        request_id: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Embedding:
        """Computes one text, all of it in phase ``prompt``: nothing is answered. A reload reaches the next one.

        Raises:
            UsageError: no tokens, more than the context holds, or tokens that the model has not.
            HookError: llama.cpp failed.
        """
        timing = Timing()
        self.check(tokens)
        with self._turn:
            timing.begin()
            number = next(self._numbers)
            identity = RequestContext(dict(labels), request_id or f"e{number}-{time.time_ns():x}")
            source = self._source()
            self._installed.source = source
            self._installed.begin(identity)
            running = Running(
                number,
                identity,
                len(tokens),
                source.share(identity.labels, identity.request_id),
                timing,
            )
            return self._run(running, list(tokens), cancelled)

    def check(self, tokens: Sequence[int]) -> None:
        """Refuses what ``embed`` would refuse. Raises UsageError."""
        if not tokens:
            raise UsageError("the text has no tokens")
        if len(tokens) > self.context.n_ctx:
            raise UsageError(
                "the text does not fit into the context",
                found=f"{len(tokens)} tokens",
                expected=f"at most {self.context.n_ctx}",
            )
        for token in tokens:
            if not 0 <= token < self.context.n_vocab:
                raise UsageError(
                    "a token that the model has not",
                    found=str(token),
                    expected=f"0 to {self.context.n_vocab - 1}",
                )

    def _run(self, running: Running, tokens: list[int], cancelled: Callable[[], bool]) -> Embedding:
        hook, program = self.context.live_hook, self._installed.active
        self.context.forget()
        # No position is the one whose logits choose an answer's first token.
        hook.request_begin(SEQUENCE, running.number, len(tokens) + 1)
        finish, vector = "error", np.zeros(0, np.float32)
        spans: tuple[RevisionSpan, ...] = ()
        running.timing.start()
        try:
            finish, vector = self._compute(tokens, cancelled)
        finally:
            running.timing.stop()
            serials = hook.spans(SEQUENCE)
            spans = self._reader.revisions(serials)
            hook.request_end(SEQUENCE)
            events = [
                event
                for raw in hook.drain()
                if (event := self._reader.event(raw, running.request, spans)) is not None
            ]
            self._installed.forget({span.serial for span in serials})
            summary = running.summary(
                spans,
                finish,
                sequence=SEQUENCE,
                program=program,
                sampling=None,
                n_answer=0,
                n_reused=0,
                n_dropped=hook.dropped,
                digests=self._reader.digests(program),
                contents=tuple(
                    each
                    for each in running.contents(tokens, self._said, (), "")
                    if each.name == "prompt"
                ),
            )
            running.events += [*events, summary]
            self._sink.write(running.events)
        return Embedding(
            vector=vector,
            finish_reason=finish,
            revisions=spans,
            report=tuple(running.events),
            request_id=running.request.request_id,
            n_prompt=len(tokens),
            program=program,
        )

    def _compute(self, tokens: list[int], cancelled: Callable[[], bool]) -> tuple[str, Vector]:
        """How it ended, and the vector if it was not ended early."""
        nothing = np.zeros(0, np.float32)
        total = np.zeros(self.context.n_embd_out, np.float64)
        for start in range(0, len(tokens), N_BATCH):
            if cancelled():
                return "cancelled", nothing
            with self._owner.lock:
                rows = self.context.embed(tokens[start : start + N_BATCH], start)
            if self.context.live_hook.request_status(SEQUENCE).abort:
                return "abort", nothing
            if self.pooling is Pooling.MEAN:
                total += rows.sum(axis=0, dtype=np.float64)
            elif self.pooling is Pooling.LAST:
                total = rows[-1].astype(np.float64)
            elif start == 0:
                total = rows[0].astype(np.float64)
        length = float(np.linalg.norm(total))
        if not np.isfinite(length) or length == 0.0:
            raise ScopeError("the text's embedding has no direction", found=f"length {length}")
        return "stop", (total / length).astype(np.float32)

    def _said(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens written out."""
        said = b"".join(self.context.piece(token, special=True) for token in tokens)
        return said.decode(errors="replace")
