"""What every embedded engine is: requests on one llama.cpp context, each under its program, each on record."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import UsageError
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
from scope_runtime.llama.observe import Observed, observe
from scope_runtime.llama.probe import Proof, prove
from scope_runtime.llama.programs import Programs, program_for, source_for
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource

T = TypeVar("T")

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


def proved(
    path: str | Path, options: ContextOptions, progress: Callable[[float], None] | None
) -> tuple[Context, Proof]:
    """A model's context with a hook that was seen to work in it. Raises ModelError or HookError."""
    context = Context(path, options, progress=progress)
    try:
        return context, prove(context)
    except BaseException:
        context.close()
        raise


class Engine(ABC):
    """A context, its hook, and the programs that are active in it.

    Args:
        sink: where events go; never called inside a decode.
        model_digest: SHA-256 of the model file, for the records.
    """

    _installed: Programs

    def __init__(
        self, context: Context, proof: Proof, installed: Programs, sink: Sink, model_digest: str
    ) -> None:
        self.context = context
        self.proof = proof
        self._installed = installed
        self.reader = EventReader(installed.programs, model_digest)
        self._sink = sink
        self._chat: ChatTemplate | None = None
        self._requests = itertools.count(1)

    @abstractmethod
    def close(self) -> None:
        """Frees everything; no request runs any more."""

    @property
    @abstractmethod
    def load(self) -> tuple[int, int]:
        """How many requests are being answered, and how many wait for their turn."""

    # -- programs

    @property
    def source(self) -> ProgramSource:
        """What requests get their programs from."""
        return self._installed.source

    @property
    def active(self) -> Program:
        """What tokens are computed under; see ``Programs.active``."""
        return self._installed.active

    def use(self, source: ProgramSource, *, now: bool = True) -> float:
        """Serves requests from ``source`` from here on; see ``Programs.use``."""
        return self._installed.use(source, now=now)

    @property
    def acknowledged(self) -> bool:
        """Whether the last token was computed under what is active now."""
        return self._installed.acknowledged

    # -- requests

    @abstractmethod
    def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        labels: Mapping[str, str],
        *,
        request_id: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        began: Began = lambda program, revisions: None,
        trial: ProgramSource | None = None,
    ) -> Iterator[str | Generation]:
        """Yields pieces of text (``Piece``) as they are decoded, at last the Generation.

        Args:
            trial: policies that this request alone runs under, instead of those in force.

        Raises:
            UsageError: an empty prompt, or one that leaves no room in the context, or no tokens of this model. When
                it begins: this thread left a stream open; a grammar that cannot be read, or that no token follows.
        """

    def logits(
        self, tokens: Sequence[int], labels: Mapping[str, str], n_prompt: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits (n_tokens, n_vocab) of every position, computed afresh; phase as if ``n_prompt`` were prompt.

        Waits until no request is under way.
        """
        n = self._check_read(tokens, n_prompt)

        def read() -> npt.NDArray[np.float32]:
            with self._reading(labels, n):
                return self.context.decode(list(tokens), 0, all_logits=True)

        return self._by_itself(read)

    def observe(
        self,
        tokens: Sequence[int],
        layers: Iterable[int],
        labels: Mapping[str, str],
        n_prompt: int | None = None,
        n_next: int = 0,
    ) -> Observed:
        """Reads tokens as a request with these labels would, computed afresh; see ``observe.observe``.

        Waits until no request is under way. It answers nobody, so alerts do not fire and nothing is on record.
        """
        n = self._check_read(tokens, n_prompt)

        def read() -> Observed:
            with self._reading(labels, n, on_record=False) as running:
                program = program_for(self.source, running.request)
                return observe(self.context, list(tokens), n, layers, n_next, program)

        return self._by_itself(read)

    def _check_read(self, tokens: Sequence[int], n_prompt: int | None) -> int:
        """How many of the tokens are prompt. Raises UsageError where they cannot be read."""
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
        return n

    @contextmanager
    def _reading(
        self, labels: Mapping[str, str], n_prompt: int, *, on_record: bool = True
    ) -> Iterator[Running]:
        """A request whose tokens are all given, on empty memory, while no other is under way."""
        with self._request(labels, None, n_prompt) as running:
            self.context.forget()
            hook = self.context.live_hook
            hook.request_begin(SEQUENCE, running.number, n_prompt)
            try:
                yield running
            finally:
                hook.request_end(SEQUENCE)
                self._collect([running] if on_record else [])
                self.context.forget()

    def sample_residuals(self, n_tokens: int = 8) -> dict[int, npt.NDArray[np.float32]]:
        """Residuals (n_tokens, n_embd) of some tokens after every block, to try programs on.

        Waits until no request is under way.
        """
        n = min(n_tokens, self.context.n_ctx, self.context.n_vocab)
        tokens = [(i + 1) * self.context.n_vocab // (n + 1) for i in range(n)]
        layers = range(self.context.shape.n_layer)
        return self._by_itself(lambda: next(residuals(self.context, [tokens], layers)).layers)

    @abstractmethod
    def _by_itself(self, action: Callable[[], T]) -> T:
        """Runs something while no request is under way; what is held after it is nothing."""

    @abstractmethod
    def _request(
        self,
        labels: Mapping[str, str],
        request_id: str | None,
        n_prompt: int,
    ) -> AbstractContextManager[Running]:
        """A request with its program on the first sequence, while no other is under way."""

    def _numbered(
        self,
        labels: Mapping[str, str],
        request_id: str | None,
        n_prompt: int,
        timing: Timing,
        trial: ProgramSource | None = None,
    ) -> Running:
        """A request with its number, and what it gets of the policies."""
        number = next(self._requests)
        name = request_id or f"r{number}-{time.time_ns():x}"
        identity = RequestContext(dict(labels), name, trial)
        share = source_for(self.source, identity).share(identity.labels, name)
        return Running(number, identity, n_prompt, share, timing)

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

    def _usable(
        self,
        sequence: int,
        held: Sequence[int],
        n_held_prompt: int,
        prompt: Sequence[int],
        program: Program,
    ) -> int:
        """How many of a prompt's first tokens a sequence holds with KV that is right for them under a program.

        Right means: computed under an equal program, and under the same phase as now (what was answered then and is
        prompt now was steered differently if the program looks at the phase).

        Args:
            held: tokens whose KV it holds; the first ``n_held_prompt`` of them were computed as prompt.
        """
        limit = min(len(held), len(prompt) - 1)
        if program.phase_dependent:
            limit = min(limit, n_held_prompt)
        same = next((i for i in range(limit) if held[i] != prompt[i]), limit)
        for span in self.context.live_hook.spans(sequence):
            if not self._installed.computed_as(program, span.serial):
                same = min(same, span.first)
        return same

    # -- records

    def _finish(
        self,
        running: Running,
        under_way: Sequence[Running],
        finish: str,
        *,
        sequence: int,
        program: Program,
        sampling: Sampling,
        prompt: Sequence[int],
        answer: Answer,
        n_reused: int,
    ) -> Generation:
        """Ends a request in the hook and puts it on record.

        Args:
            under_way: it, and the others beside it.
            program: what its last token was computed under.
        """
        hook = self.context.live_hook
        spans = self.reader.revisions(hook.spans(sequence))
        hook.request_end(sequence)
        self._collect(under_way, running, spans)
        summary = running.summary(
            spans,
            finish,
            sequence=sequence,
            program=program,
            sampling=sampling,
            n_answer=len(answer.tokens),
            n_reused=n_reused,
            n_dropped=hook.dropped,
            digests=self.reader.digests(program),
            contents=running.contents(prompt, self._said, answer.tokens, answer.text),
        )
        running.events.append(summary)
        self._sink.write([summary])
        return Generation(
            text=answer.text,
            tokens=tuple(answer.tokens),
            finish_reason=finish,
            revisions=spans,
            report=tuple(running.events),
            request_id=running.request.request_id,
            n_prompt=len(prompt),
            n_reused=n_reused,
            scores=tuple(answer.scores),
        )

    def _collect(
        self,
        under_way: Sequence[Running],
        ending: Running | None = None,
        spans: tuple[RevisionSpan, ...] = (),
    ) -> None:
        """Takes the hook's events off the ring: each goes to its request's report, and all to the sink.

        Args:
            ending: the request that ``spans`` are of.
        """
        by_number = {running.number: running for running in under_way}
        events: list[Event] = []
        for raw in self.context.live_hook.drain():
            running = by_number.get(raw.request_id)
            if running is None:
                continue
            event = self.reader.event(raw, running.request, spans if running is ending else ())
            if event is not None:
                running.events.append(event)
                events.append(event)
        if events:
            self._sink.write(events)

    def _said(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens written out."""
        said = b"".join(self.context.piece(token, special=True) for token in tokens)
        return said.decode(errors="replace")

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
