"""llama.cpp in this process as an engine of the gateway: a thread computes, the event loop passes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, TypeVar, cast

from scope_runtime.errors import UsageError
from scope_runtime.events import RevisionSpan
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.chat import Message
from scope_runtime.llama.engine import Generation
from scope_runtime.policy.model import Policy
from scope_runtime.program import Program
from scope_runtime.runtime import GenerateOptions, Runtime
from scope_runtime.select import ProgramSource
from scope_runtime.serve.ask import (
    Ask,
    AskVectors,
    Began,
    Done,
    Item,
    Reads,
    TextVector,
    changing,
)
from scope_runtime.serve.controls import control_pattern, without_controls
from scope_runtime.serve.errors import ApiError, no_embeddings

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader

T = TypeVar("T")


class Embedded:
    """A Runtime that answers for the gateway; it is closed with it."""

    takes: frozenset[str] = frozenset()

    def __init__(self, runtime: Runtime) -> None:
        self.slots = runtime.n_parallel
        self._runtime = runtime
        self._controls = control_pattern(runtime.control_texts())
        self._threads = ThreadPoolExecutor(self.slots, thread_name_prefix="scope-answer")

    def compile(self, policies: Sequence[Policy]) -> ProgramSource:
        """See ``Engine``."""
        return self._runtime.compiled(policies)

    @property
    def reads(self) -> Reads:
        """See ``Engine``."""
        return Reads(self._runtime.model)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """See ``Engine``; it waits for the answer under way, and the next one for it."""
        from scope_runtime.inspect.reader import Reader

        yield Reader.of(self._runtime)

    def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """See ``Engine``."""
        return self._from_thread(partial(self._compute, ask))

    def embed(self, ask: AskVectors) -> AsyncGenerator[TextVector, None]:
        """See ``Embeds``."""
        return self._from_thread(partial(self._compute_vectors, ask))

    async def _from_thread(
        self, compute: Callable[[Callable[[], bool], Callable[[T], None]], None]
    ) -> AsyncGenerator[T, None]:
        """What ``compute(cancelled, tell)`` tells, as it comes."""
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[T | None] = asyncio.Queue()
        gone = Flag()

        def tell(item: T) -> None:
            loop.call_soon_threadsafe(came.put_nowait, item)

        work = loop.run_in_executor(self._threads, compute, gone.is_set, tell)
        work.add_done_callback(lambda _: came.put_nowait(None))
        try:
            while (item := await came.get()) is not None:
                yield item
            work.result()
        finally:
            gone.set()
            await asyncio.wait({work})
            # Whoever goes away does not ask how it ended; the loop must not complain of that.
            work.exception()

    def _compute(
        self, ask: Ask, cancelled: Callable[[], bool], tell: Callable[[Item], None]
    ) -> None:
        def began(program: Program, revisions: tuple[RevisionSpan, ...]) -> None:
            tell(Began(revisions[0].revision if revisions else program.revision, changing(program)))

        drawn = {field.name: getattr(ask.sampling, field.name) for field in fields(ask.sampling)}
        options = cast(
            GenerateOptions,
            {
                **drawn,
                "labels": ask.labels,
                "request_id": ask.request_id,
                "cancelled": cancelled,
                "began": began,
                "trial": ask.trial,
            },
        )
        for item in self._stream(ask, options):
            if isinstance(item, Generation):
                tell(_done(item))
            else:
                tell(item if isinstance(item, Piece) else Piece(item))

    def _compute_vectors(
        self, ask: AskVectors, cancelled: Callable[[], bool], tell: Callable[[TextVector], None]
    ) -> None:
        if not self._runtime.embeds:
            raise no_embeddings("It was started without --embeddings.")
        texts = [
            self._runtime.tokenize(text) if isinstance(text, str) else list(text)
            for text in ask.texts
        ]
        for index, tokens in enumerate(texts):
            # All or nothing: none is on record of a request that is refused.
            try:
                self._runtime.check_text(tokens)
            except UsageError as error:
                raise ApiError(
                    400, str(error), code="invalid_value", param=f"input[{index}]"
                ) from None
        for tokens, request_id in zip(texts, ask.request_ids, strict=True):
            made = self._runtime.embed(
                tokens, labels=ask.labels, request_id=request_id, cancelled=cancelled
            )
            if made.finish_reason == "cancelled":
                return
            revision = made.revisions[0].revision if made.revisions else made.program.revision
            tell(
                TextVector(
                    made.vector,
                    Began(revision, changing(made.program)),
                    Done(
                        finish_reason=made.finish_reason,
                        revisions=made.revisions,
                        report=made.report,
                        n_prompt=made.n_prompt,
                        n_reused=0,
                        n_answer=0,
                    ),
                )
            )

    def _stream(self, ask: Ask, options: GenerateOptions) -> Iterator[str | Generation]:
        if ask.messages is None:
            return self._runtime.generate(ask.prompt or (), stream=True, **options)
        messages = [cast(Message, self._harmless(message)) for message in ask.messages]
        return self._runtime.chat(messages, stream=True, **options)

    def _harmless(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {**message, "content": without_controls(message["content"], self._controls)}

    async def close(self) -> None:
        """Waits for the running answer, then frees model and logs."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        await loop.run_in_executor(None, self._runtime.close)


def _done(answer: Generation) -> Done:
    return Done(
        finish_reason=answer.finish_reason,
        revisions=answer.revisions,
        report=answer.report,
        n_prompt=answer.n_prompt,
        n_reused=answer.n_reused,
        n_answer=len(answer.tokens),
    )
