"""The embedded engine: requests on one llama.cpp context, each token under the active program, each on record."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import ScopeError, UsageError
from scope_runtime.events import (
    Event,
    EventReader,
    RequestContext,
    RevisionSpan,
    Sink,
)
from scope_runtime.llama.answer import Answer, TokenScore
from scope_runtime.llama.capture import residuals
from scope_runtime.llama.chat import ChatTemplate, Message
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.installed import Installed
from scope_runtime.llama.probe import Proof, prove
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampler import Sampler
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.llama.turn import Turn
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource

SEQUENCE = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer and what was done to it.

    Attributes:
        text: the answer, control tokens left out.
        tokens: the answer's token ids; the end token is not among them.
        finish_reason: ``stop``, ``length``, ``abort`` (an alert or the dose limit ended it) or ``cancelled``.
        revisions: under which policy revision the answer was computed, from which position of the sequence on.
        report: the request's events: one per rule, and every alert.
        n_prompt: tokens of the prompt; n_reused of them came from the cache of an earlier request.
        scores: log probabilities of the answer's tokens, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    revisions: tuple[RevisionSpan, ...]
    report: tuple[Event, ...]
    request_id: str
    n_prompt: int
    n_reused: int
    scores: tuple[TokenScore, ...] = ()


Began = Callable[[Program, tuple[RevisionSpan, ...]], None]
"""Told once, when the prompt is computed: under which program, and the revisions so far."""


class Engine:
    """A context, its hook, and the program that is active in it. One request at a time; others wait their turn.

    Args:
        path: the GGUF model.
        sink: where events go; called on the request's thread, never inside a decode.
        model_digest: SHA-256 of the model file, for the records.
    """

    def __init__(
        self,
        path: str | Path,
        options: ContextOptions,
        sink: Sink,
        model_digest: str,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.context = Context(path, options, progress=progress)
        try:
            self.proof: Proof = prove(self.context)
        except BaseException:
            self.context.close()
            raise
        self._chat: ChatTemplate | None = None
        self._sink = sink
        self._installed = Installed(self.context, self._request_under_way)
        self.reader = EventReader(self._installed.programs, model_digest)
        self._requests = itertools.count(1)
        self._turn = Turn()
        self._open_stream: weakref.ref[Generator[str | Generation]] | None = None
        self._held: list[int] = []  # tokens whose KV sequence 0 holds, in order
        self._held_prompt = (
            0  # how many of them were some request's prompt, short of its last token
        )
        self._running: Running | None = None

    def close(self) -> None:
        """Waits for the running request, then frees everything; a stream that this thread left open ends here."""
        stream = self._open_stream() if self._turn.is_mine and self._open_stream else None
        if stream is not None:
            stream.close()
        with self._turn:
            self.context.close()

    def _request_under_way(self) -> RequestContext | None:
        running = self._running
        return running.request if running is not None else None

    # -- programs

    @property
    def source(self) -> ProgramSource:
        """What requests get their programs from."""
        return self._installed.source

    @property
    def active(self) -> Program:
        """What tokens are computed under."""
        return self._installed.active

    def use(self, source: ProgramSource, *, now: bool = True) -> float:
        """Serves requests from ``source`` from here on; see ``Installed.use``."""
        return self._installed.use(source, now=now)

    @property
    def load(self) -> tuple[int, int]:
        """How many requests are being answered, and how many wait for their turn."""
        return int(self._running is not None), self._turn.n_waiting

    @property
    def acknowledged(self) -> bool:
        """Whether the last token was computed under the program that is active now."""
        return self._installed.acknowledged

    # -- requests

    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        labels: Mapping[str, str],
        *,
        request_id: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        began: Began = lambda program, revisions: None,
    ) -> Iterator[str | Generation]:
        """Yields pieces of text (``Piece``) as they are decoded, at last the Generation.

        Raises:
            UsageError: an empty prompt, or one that leaves no room in the context, or no tokens of this model. When
                it begins: this thread left a stream open; a grammar that cannot be read, or that no token follows.
        """
        self._check_prompt(prompt)
        me: list[weakref.ref[Generator[str | Generation]]] = []
        stream = self._stream(me, list(prompt), sampling, labels, request_id, cancelled, began)
        me.append(weakref.ref(stream))
        return stream

    def _stream(
        self,
        me: list[weakref.ref[Generator[str | Generation]]],
        prompt: list[int],
        sampling: Sampling,
        labels: Mapping[str, str],
        request_id: str | None,
        cancelled: Callable[[], bool],
        began: Began,
    ) -> Generator[str | Generation]:
        sampling = sampling.settled()
        timing = Timing()
        with (
            self._turn,
            closing(Sampler(self.context, sampling)) as sampler,
            self._request(labels, request_id, len(prompt), timing) as running,
        ):
            timing.begin()
            self._open_stream = me[0]
            yield from self._run(running, prompt, sampling, sampler, cancelled, began)

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise UsageError("the prompt has no tokens")
        if len(prompt) >= self.context.n_ctx:
            raise UsageError(
                "the prompt does not fit into the context",
                found=f"{len(prompt)} tokens",
                expected=f"fewer than {self.context.n_ctx}",
            )
        self._check_tokens(prompt)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.context.n_vocab:
                raise UsageError(
                    "a token that the model has not",
                    found=str(token),
                    expected=f"0 to {self.context.n_vocab - 1}",
                )

    @contextmanager
    def _request(
        self,
        labels: Mapping[str, str],
        request_id: str | None,
        n_prompt: int,
        timing: Timing | None = None,
    ) -> Iterator[Running]:
        """Numbers the request and gives it its program; the caller holds the turn."""
        number = next(self._requests)
        identity = RequestContext(dict(labels), request_id or f"r{number}-{time.time_ns():x}")
        with self.context.lock:
            self._installed.begin(identity)
            self._running = Running(
                number,
                identity,
                n_prompt,
                self.source.share(*identity),
                timing or Timing(),
            )
        try:
            yield self._running
        finally:
            self._running = None

    def _run(
        self,
        running: Running,
        prompt: list[int],
        sampling: Sampling,
        sampler: Sampler,
        cancelled: Callable[[], bool],
        began: Began,
    ) -> Iterator[str | Generation]:
        context, hook, timing = self.context, self.context.live_hook, running.timing
        timing.start()
        reused = self._reuse(prompt)
        hook.request_begin(SEQUENCE, running.number, len(prompt))
        answer = Answer(context, sampling)
        scored = sampling.top_logprobs is not None
        finish = "cancelled"
        try:
            pending = prompt[reused:]
            while True:
                timing.start()
                logits = self._advance(pending)
                self._collect(running)
                if not answer.tokens:
                    began(self.active, self.reader.revisions(hook.spans(SEQUENCE)))
                if hook.request_status(SEQUENCE).abort:
                    finish = "abort"
                    break
                if len(answer.tokens) >= sampling.max_tokens:
                    finish = "length"
                    break
                if cancelled():
                    break
                token = sampler.next()
                timing.stop()
                if context.ends(token):
                    finish = "stop"
                    break
                piece = answer.take(token, logits if scored else None)
                if piece is not None:
                    yield piece
                if answer.stopped:
                    finish = "stop"
                    break
                if (
                    len(answer.tokens) >= sampling.max_tokens
                    or len(self._held) + 1 >= context.n_ctx
                ):
                    finish = "length"
                    break
                pending = [token]
            rest = answer.end()
            if rest is not None:
                yield rest
        except ScopeError:
            finish = "error"
            raise
        finally:
            timing.stop()
            self._held_prompt = min(len(prompt) - 1, len(self._held))
            spans = self.reader.revisions(hook.spans(SEQUENCE))
            hook.request_end(SEQUENCE)
            self._collect(running, spans)
            summary = running.summary(
                spans,
                finish,
                sequence=SEQUENCE,
                program=self.active,
                sampling=sampling,
                n_answer=len(answer.tokens),
                n_reused=reused,
                n_dropped=hook.dropped,
                digests=self.reader.digests(self.active),
                contents=running.contents(prompt, self._said, answer.tokens, answer.text),
            )
            running.events.append(summary)
            self._sink.write([summary])
        yield Generation(
            text=answer.text,
            tokens=tuple(answer.tokens),
            finish_reason=finish,
            revisions=spans,
            report=tuple(running.events),
            request_id=running.request.request_id,
            n_prompt=len(prompt),
            n_reused=reused,
            scores=tuple(answer.scores),
        )

    def _said(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens written out."""
        said = b"".join(self.context.piece(token, special=True) for token in tokens)
        return said.decode(errors="replace")

    def _advance(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Decodes tokens after what is held, and returns the last one's logits (n_vocab,).

        After a failure or an interrupt nothing that is held is trusted.
        """
        try:
            logits = self.context.decode(tokens, len(self._held))
            self._held += tokens
            return logits
        except BaseException:
            # Some batches of the tokens may be in memory, which no list of ours says: the next request starts afresh.
            self._held = []
            raise

    def _reuse(self, prompt: list[int]) -> int:
        """Keeps the longest prefix whose KV is right for this prompt under the active program; drops the rest.

        Right means: computed under an equal program, and under the same phase as now (what was answered then and is
        prompt now was steered differently if the program looks at the phase).
        """
        hook = self.context.live_hook
        limit = min(len(self._held), len(prompt) - 1)
        if self.active.phase_dependent:
            limit = min(limit, self._held_prompt)
        same = next((i for i in range(limit) if self._held[i] != prompt[i]), limit)
        spans = hook.spans(SEQUENCE)
        for span in spans:
            if not self._installed.computed_as_now(span.serial):
                same = min(same, span.first)
        self._installed.forget({span.serial for span in spans})
        if same < len(self._held) and not self.context.forget(SEQUENCE, same):
            same = 0
        if same == 0:
            self.context.forget()
        self._held = self._held[:same]
        return same

    def _collect(self, running: Running, spans: tuple[RevisionSpan, ...] = ()) -> None:
        """Takes the hook's events off the ring and hands them to the sink."""
        events = []
        for raw in self.context.live_hook.drain():
            event = self.reader.event(raw, running.request, spans)
            if event is not None:
                events.append(event)
        if events:
            running.events += events
            self._sink.write(events)

    def logits(
        self, tokens: Sequence[int], labels: Mapping[str, str], n_prompt: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits (n_tokens, n_vocab) of every position, computed afresh; phase as if ``n_prompt`` were prompt."""
        if not tokens or len(tokens) > self.context.n_ctx:
            raise UsageError(
                "cannot compute logits of so many tokens",
                found=str(len(tokens)),
                expected=f"1 to {self.context.n_ctx}",
            )
        self._check_tokens(tokens)
        n = len(tokens) if n_prompt is None else n_prompt
        if not 1 <= n <= len(tokens):
            raise UsageError(
                "n_prompt counts some of the tokens", found=str(n), expected=f"1 to {len(tokens)}"
            )
        with self._turn, self._request(labels, None, n) as running:
            self.context.forget()
            self._held = []
            hook = self.context.live_hook
            hook.request_begin(SEQUENCE, running.number, n)
            try:
                return self.context.decode(list(tokens), 0, all_logits=True)
            finally:
                hook.request_end(SEQUENCE)
                self._collect(running)
                self.context.forget()

    def sample_residuals(self, n_tokens: int = 8) -> dict[int, npt.NDArray[np.float32]]:
        """Residuals (n_tokens, n_embd) of some tokens after every block, to try programs on."""
        n = min(n_tokens, self.context.n_ctx, self.context.n_vocab)
        tokens = [(i + 1) * self.context.n_vocab // (n + 1) for i in range(n)]
        with self._turn:
            self._held = []
            layers = range(self.context.shape.n_layer)
            return next(residuals(self.context, [tokens], layers)).layers

    # -- text

    def encode_prompt(self, text: str) -> list[int]:
        """A raw prompt: no template; control tokens written out in it count as such."""
        return self.context.tokenize(text, special=True)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the model's chat template."""
        if self._chat is None:
            # Only now: a model whose template is broken still continues raw prompts.
            self._chat = ChatTemplate.of(self.context)
        return self._chat.tokens(self.context, messages)
