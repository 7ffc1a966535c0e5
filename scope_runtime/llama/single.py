"""The embedded engine for one request at a time: each token under the active program, both data planes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import ScopeError
from scope_runtime.events import RequestContext, Sink
from scope_runtime.llama.answer import Answer
from scope_runtime.llama.context import ContextOptions
from scope_runtime.llama.engine import SEQUENCE, Began, Engine, Generation, proved
from scope_runtime.llama.installed import Installed
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampler import Sampler
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.llama.turn import Turn
from scope_runtime.select import ProgramSource

T = TypeVar("T")


class Single(Engine):
    """An Engine with one request at a time, on the thread that reads it; others wait their turn."""

    _installed: Installed

    def __init__(
        self,
        path: str | Path,
        options: ContextOptions,
        sink: Sink,
        model_digest: str,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._running: Running | None = None
        self._turn = Turn()
        self._open_stream: weakref.ref[Generator[str | Generation]] | None = None
        self._held: list[int] = []  # tokens whose KV sequence 0 holds, in order
        self._held_prompt = (
            0  # how many of them were some request's prompt, short of its last token
        )
        context, proof = proved(path, options, progress)
        installed = Installed(context, self._request_under_way)
        super().__init__(context, proof, installed, sink, model_digest)

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

    @property
    def load(self) -> tuple[int, int]:
        return int(self._running is not None), self._turn.n_waiting

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
        """See ``Engine.generate``; a token is computed when it is read."""
        self._check_prompt(prompt)
        me: list[weakref.ref[Generator[str | Generation]]] = []
        stream = self._stream(
            me, list(prompt), sampling, labels, request_id, cancelled, began, trial
        )
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
        trial: ProgramSource | None,
    ) -> Generator[str | Generation]:
        sampling = sampling.settled()
        timing = Timing()
        with (
            self._turn,
            closing(Sampler(self.context, sampling)) as sampler,
            self._request(labels, request_id, len(prompt), timing, trial) as running,
        ):
            timing.begin()
            self._open_stream = me[0]
            yield from self._run(running, prompt, sampling, sampler, cancelled, began)

    def _by_itself(self, action: Callable[[], T]) -> T:
        with self._turn:
            self._held = []
            return action()

    @contextmanager
    def _request(
        self,
        labels: Mapping[str, str],
        request_id: str | None,
        n_prompt: int,
        timing: Timing | None = None,
        trial: ProgramSource | None = None,
    ) -> Iterator[Running]:
        """Numbers the request and gives it its program; the caller holds the turn."""
        with self.context.lock:
            running = self._numbered(labels, request_id, n_prompt, timing or Timing(), trial)
            self._installed.begin(running.request)
            self._running = running
        try:
            yield running
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
                self._collect([running])
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
            done = self._finish(
                running,
                [running],
                finish,
                sequence=SEQUENCE,
                program=self.active,
                sampling=sampling,
                prompt=prompt,
                answer=answer,
                n_reused=reused,
            )
        yield done

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
        """Keeps the longest prefix whose KV is right for this prompt under the active program; drops the rest."""
        same = self._usable(SEQUENCE, self._held, self._held_prompt, prompt, self.active)
        self._installed.forget({span.serial for span in self.context.live_hook.spans(SEQUENCE)})
        if same < len(self._held) and not self.context.forget(SEQUENCE, same):
            same = 0
        if same == 0:
            self.context.forget()
        self._held = self._held[:same]
        return same
