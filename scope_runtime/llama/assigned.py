"""Each sequence under the program of its own request: where programs come from, and how all of them are replaced."""

from __future__ import annotations

import time
from collections.abc import Iterable

from scope_runtime.events import RequestContext
from scope_runtime.llama.context import Context
from scope_runtime.llama.programs import Prepared, Programs, key_of, program_for
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource


class Assigned(Programs):
    """Programs held by the hook, and which sequence runs under which; they change together, between two ubatches."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.programs: dict[int, Program] = {}
        self.source = ProgramSource(None, context.shape)
        self._held: dict[tuple[str, str], int] = {}  # serials, by `key_of`
        self._coming: set[tuple[str, str]] = set()  # held for a source that is not in force yet
        self._requests: dict[int, RequestContext] = {}
        self._serials: dict[int, int] = {}  # of every sequence with a request
        self._since_use = 0  # the assignment by which the source was taken up

    @property
    def active(self) -> Program:
        """All rules of the source; each request has its part."""
        return self.source.program

    def program_of(self, sequence: int) -> Program:
        """What the next token of a sequence with a request is computed under."""
        return self.programs[self._serials[sequence]]

    def use(self, source: ProgramSource, *, now: bool) -> float:
        with self._context.lock:
            under_way = dict(self._requests)
        prepared = Prepared(source, under_way)
        with self._context.lock:
            self._coming = {key_of(program) for program in prepared.programs}
        try:
            # Compiled, loaded and checked before tokens wait; what happens then is a pointer.
            for program in prepared.programs:
                self._hold(program)
            return self._swap(prepared, now)
        finally:
            with self._context.lock:
                self._coming = set()
                self._release_old()
                if not self._requests:
                    # No event can come, and KV of an unknown program is not used again.
                    for serial in set(self.programs) - set(self._held.values()):
                        del self.programs[serial]

    def _swap(self, prepared: Prepared, now: bool) -> float:
        with self._context.lock:
            began = time.perf_counter()
            serials = dict(self._serials)
            if now:
                for sequence, request in self._requests.items():
                    serials[sequence] = self._hold(prepared.program_for(sequence, request))
            self._since_use = self._context.live_hook.assign(serials)
            self.source, self._serials = prepared.source, serials
            return (time.perf_counter() - began) * 1e3

    def begin(self, sequence: int, request: RequestContext) -> Program:
        """Puts a sequence under its request's program."""
        with self._context.lock:
            program = program_for(self.source, request)
            self._serials[sequence] = self._hold(program)
            self._requests[sequence] = request
            self._context.live_hook.assign(self._serials)
            return program

    def end(self, sequence: int, named: Iterable[int]) -> None:
        """The sequence's request is over; lets go of programs of old sources that no sequence and no span names.

        Args:
            named: serials in the spans of every sequence.
        """
        with self._context.lock:
            self._requests.pop(sequence, None)
            self._serials.pop(sequence, None)
            self._context.live_hook.assign(self._serials)
            self._release_old()
            kept = {*self._serials.values(), *named, *self._held.values()}
            for serial in set(self.programs) - kept:
                del self.programs[serial]

    def _release_old(self) -> None:
        """Lets go of programs of old sources that nothing runs under; what they are called stays known."""
        running = set(self._serials.values())
        for key, serial in list(self._held.items()):
            if key in self._coming or serial in running:
                continue
            if self.programs[serial].revision != self.source.revision:
                self._context.live_hook.release(serial)
                del self._held[key]

    def _hold(self, program: Program) -> int:
        key = key_of(program)
        with self._context.lock:
            serial = self._held.get(key)
            if serial is None:
                serial = self._context.live_hook.hold(program.blob)
                self._held[key] = serial
                self.programs[serial] = program
            return serial

    @property
    def acknowledged(self) -> bool:
        """Whether a token was computed since the source was taken up."""
        return self._context.live_hook.assignment >= self._since_use > 0
