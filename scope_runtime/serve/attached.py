"""A llama-server as an engine of the gateway: a free slot for each answer, held until the server is done with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from scope_runtime.attached.link import Ended, Request
from scope_runtime.attached.runtime import AttachedRuntime
from scope_runtime.attached.upstream import EngineGone, NotTaken, Sent
from scope_runtime.errors import HookError, ScopeError, UsageError
from scope_runtime.events import RequestContext
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.programs import key_of, program_for
from scope_runtime.llama.timing import Timing
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource
from scope_runtime.serve.ask import Ask, Began, Done, Extra, Item, Reads, changing
from scope_runtime.serve.attached_limits import check
from scope_runtime.serve.attached_wire import TAKES, Wire, nothing
from scope_runtime.serve.beside import Beside
from scope_runtime.serve.errors import ApiError

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader

T = TypeVar("T")
_AGAIN_S = 0.2
_LAST_S = 10.0
"""What the server may take, in the end, to notice that nobody waits for an answer."""


@dataclass(slots=True)
class _Slot:
    """A slot that nobody uses.

    Attributes:
        program: what the latest prompt ran under, and ``prompt``, its text.
        used: counts up; the least has rested longest.
    """

    number: int
    program: tuple[str, str] | None = None
    prompt: str = ""
    used: int = 0


@dataclass(slots=True)
class _Told:
    """What an answer was so far; ``sent``: its request, once the server has it."""

    sent: Sent | None = None
    finish: str = "cancelled"
    text: list[str] = field(default_factory=list)
    n_prompt: int = 0
    n_reused: int = 0
    n_answer: int = 0


class AttachedEngine:
    """An AttachedRuntime that answers for the gateway; it is closed with it."""

    takes = TAKES

    def __init__(self, runtime: AttachedRuntime) -> None:
        self.slots = runtime.n_slots
        self._runtime = runtime
        self._beside = Beside(runtime.command, runtime.model_digest, lambda: runtime.source)
        self._wire = Wire(runtime.control_texts())
        self._free = [_Slot(number) for number in range(self.slots)]
        self._n_used = 0
        self._freed = asyncio.Event()
        self._endings: set[asyncio.Future[Ended]] = set()
        # Each answer begins and ends on a thread: both wait for the server.
        self._threads = ThreadPoolExecutor(2 * self.slots, thread_name_prefix="scope-slot")

    def compile(self, policies: Sequence[Policy]) -> ProgramSource:
        """See ``Engine``."""
        return self._runtime.compiled(policies)

    @property
    def reads(self) -> Reads:
        """See ``Engine``."""
        return self._beside.reads

    def reading(self) -> AbstractContextManager[Reader]:
        """See ``Engine``."""
        return self._beside.reading()

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """See ``Engine``."""
        timing, told = Timing(), _Told()
        # On a thread, because a request may be large; before a slot is taken, because it may be refused.
        await asyncio.to_thread(check, ask)
        sampling = ask.sampling.settled()
        prompt = self._wire.prompt_text(ask)
        slot = await self._take(ask, prompt)
        begin = self._on_thread(
            lambda: self._runtime.begin(
                slot.number, ask.labels, ask.request_id, sampling, timing, ask.trial
            )
        )
        ending: asyncio.Future[Ended] | None = None
        try:
            request = await asyncio.shield(begin)
            body = self._wire.body(ask, sampling, slot.number, request.reusable)
            slot.prompt = prompt
            slot.program = key_of(request.program)
            told.sent = request.link.upstream.send(self._wire.route(ask), body, slot.number)
            async with aclosing(self._items(request, told.sent, told)) as items:
                async for item in items:
                    yield item
            ending = self._end(slot, begin, told, prompt)
            ended = await asyncio.shield(ending)
        except EngineGone as error:
            told.finish = "error"
            raise self._lost(error) from None
        except HookError as error:
            # The server is there, and nobody can say under what it would compute.
            told.finish = "error"
            raise self._unsteered(error.message) from None
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                told.finish = "error"
            raise
        finally:
            if ending is None:
                # Whoever went away does not wait for it, and its place does.
                ending = self._end(slot, begin, told, prompt)
                await asyncio.shield(ending)
        if ended.unsteered is not None and self._runtime.must_steer(request):
            raise self._unsteered(ended.unsteered)
        yield Done(
            told.finish,
            ended.revisions,
            ended.report,
            told.n_prompt,
            told.n_reused,
            told.n_answer,
        )

    async def _items(self, request: Request, sent: Sent, told: _Told) -> AsyncGenerator[Item, None]:
        """What the server answers, up to where a policy ends it."""
        timing = request.timing
        timing.start()
        began = False
        async with aclosing(self._events(request, sent)) as events:
            async for event in events:
                timing.stop()
                part = self._wire.read(event, request.sampling.top_logprobs)
                if not began:
                    began = True
                    first = request.first(part.n_reused)
                    yield Began(first.revision, changing(first))
                if not request.sampling.max_tokens:
                    part = nothing(part)
                state = request.state
                if self._runtime.must_steer(request) and state.n_unsteered:
                    raise self._unsteered(f"{state.n_unsteered} tokens were not steered")
                if state.abort is not None:
                    # The server may be ahead: what was drawn from an earlier position still counts.
                    allowed = state.abort.position - (state.answer_start or 0)
                    if state.answer_start is None or part.n_answer > allowed:
                        told.finish = "abort"
                        return
                request.tokens += part.tokens
                told.n_prompt = part.n_prompt or told.n_prompt
                told.n_reused = part.n_reused or told.n_reused
                told.n_answer = part.n_answer or told.n_answer
                if part.text or part.scores:
                    told.text.append(part.text)
                    yield Piece(part.text, part.scores)
                if part.extra:
                    yield Extra(part.extra)
                if part.finish is not None:
                    told.finish = part.finish
                timing.start()
        if told.finish == "cancelled":
            raise EngineGone("llama-server ended an answer without its last word")

    @staticmethod
    async def _events(request: Request, sent: Sent) -> AsyncGenerator[Mapping[str, Any], None]:
        """As the server sends them."""
        try:
            async with aclosing(sent.events()) as events:
                async for event in events:
                    yield event
        except NotTaken as error:
            # It fails so on what it cannot read, too: a form that it does not know, arguments of a template.
            if request.link.hook.alive and not request.state.n_columns:
                raise UsageError(error.message) from None
            raise

    def _end(
        self, slot: _Slot, begin: asyncio.Future[Request], told: _Told, prompt: str
    ) -> asyncio.Future[Ended]:
        """Waits until the server is done with the slot, puts the request on record, and frees the slot."""

        async def end() -> Ended:
            try:
                request = await begin
            except ScopeError:
                return Ended((), (), None)  # it never began: told by who asked for it
            finally:
                if begin.cancelled() or begin.exception() is not None:
                    self._give_back(slot)
            try:
                if told.sent is not None:
                    await told.sent.close()
                return await self._on_thread(lambda: self._put_on_record(request, told, prompt))
            finally:
                self._give_back(slot)

        ending = asyncio.ensure_future(end())
        self._endings.add(ending)
        ending.add_done_callback(self._ended)
        return ending

    def _ended(self, ending: asyncio.Future[Ended]) -> None:
        self._endings.discard(ending)
        # Whoever goes away does not ask how it ended; the loop must not complain of that.
        if not ending.cancelled():
            ending.exception()

    def _put_on_record(self, request: Request, told: _Told, prompt: str) -> Ended:
        link = request.link
        while not link.server.process.ended():
            try:
                link.upstream.wait_idle(request.slot)
                break
            except EngineGone:
                link.server.process.ended(_AGAIN_S)  # it may be about to end
        request.timing.stop()
        return self._runtime.end(
            request,
            told.finish,
            n_prompt=told.n_prompt,
            n_reused=told.n_reused,
            n_answer=told.n_answer,
            prompt=prompt,
            answer="".join(told.text),
        )

    # -- slots

    async def _take(self, ask: Ask, prompt: str) -> _Slot:
        """The free slot whose KV fits best; waits for one where a request that was ended still has its own."""
        while not self._free:
            self._freed.clear()
            await self._freed.wait()
        request = RequestContext(ask.labels, ask.request_id, ask.trial)
        program = program_for(self._runtime.source, request)
        name = key_of(program)

        def fits(slot: _Slot) -> tuple[int, int]:
            same = _common(slot.prompt, prompt) if slot.program == name else 0
            return same, -slot.used

        slot = max(self._free, key=fits)
        self._free.remove(slot)
        return slot

    def _give_back(self, slot: _Slot) -> None:
        self._n_used += 1
        slot.used = self._n_used
        self._free.append(slot)
        self._freed.set()

    def _on_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- errors

    def _lost(self, error: EngineGone) -> ApiError:
        why = self._runtime.trouble
        if why is not None:
            message = "The engine behind this server is not there; it is started again."
            return ApiError(502, message, code="engine_lost", retry_after_s=5)
        return ApiError(502, f"The engine failed: {error.message}.", code="engine_failed")

    @staticmethod
    def _unsteered(why: str) -> ApiError:
        return ApiError(
            502, f"The answer was not steered as it must be: {why}.", code="not_steered"
        )

    async def close(self) -> None:
        """Waits for what is being put on record, then ends the server."""
        loop = asyncio.get_running_loop()
        if self._endings:
            _, late = await asyncio.wait(set(self._endings), timeout=_LAST_S)
            if late:
                # A server that goes on with an answer that nobody wants is not waited for.
                await loop.run_in_executor(None, self._runtime.end_server)
                await asyncio.wait(late)
        await loop.run_in_executor(None, self._beside.close)
        await loop.run_in_executor(None, self._threads.shutdown)
        await loop.run_in_executor(None, self._runtime.close)


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
