"""The embedded engine for several requests side by side: one thread computes batches with columns of all of them."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import HookError, UsageError
from scope_runtime.events import Sink
from scope_runtime.llama.answer import Answer
from scope_runtime.llama.assigned import Assigned
from scope_runtime.llama.context import ContextOptions
from scope_runtime.llama.engine import SEQUENCE, Began, Engine, Generation, proved
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampler import Sampler
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.slots import Slot, Wish, Work, columns
from scope_runtime.llama.timing import Timing
from scope_runtime.native.abi import ATTACH_COLUMNS
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource

T = TypeVar("T")


class Parallel(Engine):
    """An Engine with ``options.n_seq_max`` requests at a time; more wait in the order in which they came.

    Events go to the sink on the computing thread.

    Raises:
        HookError: the hook cannot tell the columns of one sequence from another's here.
    """

    _installed: Assigned

    def __init__(
        self,
        path: str | Path,
        options: ContextOptions,
        sink: Sink,
        model_digest: str,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        context, proof = proved(path, options, progress)
        if not context.live_hook.attached & ATTACH_COLUMNS:
            context.close()
            raise HookError(
                "requests side by side need the columns attach point",
                hint="Run one at a time, or see `scope doctor`",
            )
        super().__init__(context, proof, Assigned(context), sink, model_digest)
        self._slots = [Slot(sequence) for sequence in range(options.n_seq_max)]
        self._waiting: deque[Wish] = deque()
        self._alone: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="scope-decode", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the requests under way at their next token, then frees everything."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.context.close()

    @property
    def load(self) -> tuple[int, int]:
        return sum(slot.work is not None for slot in self._slots), len(self._waiting)

    # -- requests, on their readers' threads

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
        """See ``Engine.generate``; tokens are computed whether or not they are read, until the stream is closed.

        Args:
            cancelled, began: called on the computing thread.
        """
        self._check_prompt(prompt)
        return self._read(
            Wish(
                list(prompt),
                sampling.settled(),
                dict(labels),
                request_id,
                cancelled,
                began,
                Timing(),
                trial,
            )
        )

    def _read(self, wish: Wish) -> Iterator[str | Generation]:
        self._ask(lambda: self._waiting.append(wish))
        last: object = None
        try:
            while not isinstance(last, (Generation, BaseException)):
                last = wish.told.get()
                if isinstance(last, BaseException):
                    raise last
                if isinstance(last, (str, Generation)):
                    yield last
        finally:
            # Until the end is told the sequence is in use.
            wish.gone.set()
            while not isinstance(last, (Generation, BaseException)):
                last = wish.told.get()

    def _ask(self, ask: Callable[[], None]) -> None:
        with self._changed:
            if self._closing:
                raise UsageError("the runtime is closed")
            ask()
            self._changed.notify_all()

    def _by_itself(self, action: Callable[[], T]) -> T:
        """See ``Engine._by_itself``; runs on the computing thread."""
        done = threading.Event()
        out: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                out.append(action())
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        self._ask(lambda: self._alone.append(run))
        done.wait()
        if failed:
            raise failed[0]
        return out[0]

    # -- the computing thread

    def _work(self) -> None:
        try:
            while self._next():
                self._admit()
                if any(slot.work is not None for slot in self._slots):
                    self._step()
        except BaseException as error:
            # Nobody may wait for a thread that is gone; it must be seen, too.
            with self._changed:
                self._closing = True
                wishes = [*self._waiting, *(s.work.wish for s in self._slots if s.work)]
            for wish in wishes:
                wish.told.put(error)
            raise

    def _next(self) -> bool:
        """Waits until there is something to do; False at the end."""
        with self._changed:
            while not (
                self._closing
                or self._waiting
                or self._alone
                or any(slot.work is not None for slot in self._slots)
            ):
                self._changed.wait()
            closing = self._closing
        if not closing:
            return True
        for slot in self._slots:
            if slot.work is not None:
                self._end(slot, slot.work, "cancelled")
        for wish in self._waiting:
            wish.told.put(UsageError("the runtime was closed"))
        while self._alone:
            self._alone.popleft()()
        return False

    def _admit(self) -> None:
        """Gives free sequences to who waits; what must be alone waits until all are free, and nobody overtakes it."""
        if self._alone:
            if all(slot.work is None for slot in self._slots):
                while self._alone:
                    self._alone.popleft()()
                for slot in self._slots:
                    slot.held = []
                self.context.forget()
            return
        free = [slot for slot in self._slots if slot.work is None]
        while free and self._waiting:
            wish = self._waiting.popleft()
            slot = max(free, key=lambda each: (_common(each.held, wish.prompt), -len(each.held)))
            try:
                slot.work = self._begin(slot, wish)
                free.remove(slot)
            except Exception as error:
                wish.told.put(error)

    def _begin(self, slot: Slot, wish: Wish) -> Work:
        n_prompt = len(wish.prompt)
        running = self._numbered(wish.labels, wish.request_id, n_prompt, wish.timing, wish.trial)
        sampler = Sampler(self.context, wish.sampling)
        try:
            wish.timing.begin()
            program = self._installed.begin(slot.sequence, running.request)
            n_reused = self._keep(slot, wish.prompt, program)
            self.context.live_hook.request_begin(slot.sequence, running.number, n_prompt)
        except BaseException:
            sampler.close()
            self._installed.end(slot.sequence, self._named())
            raise
        return Work(
            wish,
            running,
            sampler,
            Answer(self.context, wish.sampling),
            wish.prompt[n_reused:],
            n_reused,
        )

    def _keep(self, slot: Slot, prompt: list[int], program: Program) -> int:
        """Keeps the longest prefix whose KV is right for this prompt under the program; drops the rest."""
        same = self._usable(slot.sequence, slot.held, slot.held_prompt, prompt, program)
        if same < len(slot.held) and not self.context.forget(slot.sequence, same):
            same = 0
            self.context.forget(slot.sequence, 0)
        slot.held = slot.held[:same]
        return same

    @contextmanager
    def _request(
        self,
        labels: Mapping[str, str],
        request_id: str | None,
        n_prompt: int,
    ) -> Iterator[Running]:
        running = self._numbered(labels, request_id, n_prompt, Timing())
        self._installed.begin(SEQUENCE, running.request)
        try:
            yield running
        finally:
            self._installed.end(SEQUENCE, self._named())

    def _named(self) -> set[int]:
        hook = self.context.live_hook
        return {span.serial for slot in self._slots for span in hook.spans(slot.sequence)}

    def _step(self) -> None:
        """Computes one batch, and draws a token for every answer that it brought forward."""
        batch = columns(self._slots, self.context.n_batch)
        for slot in self._slots:
            if slot.work is not None:
                slot.work.wish.timing.start()
        try:
            logits = iter(
                self.context.decode_columns(
                    batch.tokens, batch.positions, batch.sequences, batch.output
                )
            )
            self._collect(self._under_way())
        except Exception as error:
            # Some of it may be in memory, which no list of ours says: nothing that is held is trusted.
            self._fail_all(error)
            return
        for slot, n, column in batch.parts:
            work = slot.work
            if work is None:
                continue
            slot.held += work.pending[:n]
            work.pending = work.pending[n:]
            row = next(logits) if column is not None else None
            try:
                finish = "cancelled" if work.wish.unwanted else None
                if finish is None and column is not None and row is not None:
                    finish = self._draw(slot, work, column, row)
                if finish is not None:
                    self._end(slot, work, finish)
            except Exception as error:
                self._end(slot, work, "error", error)

    def _draw(
        self, slot: Slot, work: Work, column: int, logits: npt.NDArray[np.float32]
    ) -> str | None:
        """The next token of an answer, from the logits of a column; how it ends, if it does."""
        context, answer, sampling = self.context, work.answer, work.wish.sampling
        hook = context.live_hook
        if not answer.tokens:
            program = self._installed.program_of(slot.sequence)
            work.wish.began(program, self.reader.revisions(hook.spans(slot.sequence)))
        if hook.request_status(slot.sequence).abort:
            return "abort"
        if len(answer.tokens) >= sampling.max_tokens:
            return "length"
        token = work.sampler.next(column)
        work.wish.timing.stop()
        if context.ends(token):
            return "stop"
        piece = answer.take(token, logits if sampling.top_logprobs is not None else None)
        if piece is not None:
            work.wish.told.put(piece)
        if answer.stopped:
            return "stop"
        if len(answer.tokens) >= sampling.max_tokens or len(slot.held) + 1 >= context.n_ctx:
            return "length"
        work.pending = [token]
        return None

    def _end(self, slot: Slot, work: Work, finish: str, error: Exception | None = None) -> None:
        """Puts a request on record and frees its sequence, whatever becomes of the record."""
        wish, running, answer = work.wish, work.running, work.answer
        try:
            rest = answer.end()
            if rest is not None and error is None:
                wish.told.put(rest)
            wish.timing.stop()
            work.sampler.close()
            slot.held_prompt = min(len(wish.prompt) - 1, len(slot.held))
            done = self._finish(
                running,
                self._under_way(),
                finish,
                sequence=slot.sequence,
                program=self._installed.program_of(slot.sequence),
                sampling=wish.sampling,
                prompt=wish.prompt,
                answer=answer,
                n_reused=work.n_reused,
            )
            last: object = error or done
        except Exception as fault:
            last = error or fault
        slot.work = None
        self._installed.end(slot.sequence, self._named())
        wish.told.put(last)

    def _under_way(self) -> list[Running]:
        return [slot.work.running for slot in self._slots if slot.work is not None]

    def _fail_all(self, error: Exception) -> None:
        for slot in self._slots:
            slot.held = []
            if slot.work is not None:
                self._end(slot, slot.work, "error", error)
        self.context.forget()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
