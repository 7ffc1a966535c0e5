"""The program that is active in a context: where it comes from, how it is replaced, and what KV it computed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scope_runtime.events import RequestContext
from scope_runtime.llama.context import Context
from scope_runtime.llama.programs import Programs, program_for
from scope_runtime.native.hook import LoadedProgram
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource


class Installed(Programs):
    """One program at a time, swapped between two tokens on both planes or on neither.

    Args:
        running: the request under way, or None.
    """

    def __init__(self, context: Context, running: Callable[[], RequestContext | None]) -> None:
        self._context = context
        self._running = running
        self.programs: dict[int, Program] = {}
        self.source = ProgramSource(None, context.shape)
        self._active = self.source.program
        self._swap(self._active)

    @property
    def active(self) -> Program:
        return self._active

    def use(self, source: ProgramSource, *, now: bool) -> float:
        # Compiled, if it must be, and loaded before tokens wait; what happens then is a pointer.
        likely = self._wanted(source)
        hook = self._context.live_hook
        loaded: LoadedProgram | None = hook.load(likely.blob)
        try:
            with self._context.lock:
                began = time.perf_counter()
                if self._running() is None or now:
                    wanted = self._wanted(source)
                    if wanted is likely and wanted is not self._active:
                        ready, loaded = loaded, None
                        self._swap(wanted, ready)
                    else:
                        self._swap(wanted)
                self.source = source
                return (time.perf_counter() - began) * 1e3
        finally:
            if loaded is not None:
                hook.unload(loaded)

    def _wanted(self, source: ProgramSource) -> Program:
        """The running request's program; all rules while there is none."""
        running = self._running()
        return source.program if running is None else program_for(source, running)

    def begin(self, request: RequestContext) -> None:
        """Makes the request's program the active one; the caller holds the context's lock."""
        self._swap(program_for(self.source, request))

    def _swap(self, program: Program, loaded: LoadedProgram | None = None) -> None:
        """Makes a program active between two tokens; ``loaded`` is it, in the hook's memory already."""
        with self._context.lock:
            if program is self._active and self.programs:
                return
            old = self._active
            vectors_change = _planes(program) != _planes(old)
            if vectors_change:
                self._context.set_control_vectors(_stacked(program))
            try:
                serial = self._context.live_hook.install(loaded or program.blob)
            except BaseException:
                if vectors_change:
                    self._context.set_control_vectors(_stacked(old))
                raise
            self.programs[serial] = program
            self._active = program

    @property
    def acknowledged(self) -> bool:
        return self.programs.get(self._context.live_hook.acknowledged) is self._active

    def forget(self, named: set[int]) -> None:
        """Lets go of programs that no event and no span can name any more: those but the latest and ``named``."""
        with self._context.lock:
            latest = max(self.programs)
            for serial in set(self.programs) - named - {latest}:
                del self.programs[serial]


def _planes(program: Program) -> dict[int, bytes]:
    return {layer: row.tobytes() for layer, row in program.control_vectors.items()}


def _stacked(program: Program) -> npt.NDArray[np.float32] | None:
    if not program.control_vectors:
        return None
    out = np.zeros((program.n_layer - 1, program.n_embd), np.float32)
    for layer, row in program.control_vectors.items():
        out[layer - 1] = row
    return out
