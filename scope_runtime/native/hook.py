"""The hook for one context: a thin class over the native functions.

Nothing here knows policies. Errors become HookError with the hook's own sentence.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import HookError
from scope_runtime.native.abi import (
    ERR_BYTES,
    CapturedRow,
    HookStats,
    RawEvent,
    RawSpan,
    RequestState,
    f32p,
    library,
)


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [first, end) whose KV was computed under program ``serial`` (0: none)."""

    first: int
    end: int
    serial: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One token's measurements: per rule activation and dose (NaN: not measured) and whether it fired."""

    activation: npt.NDArray[np.float32]
    dose: npt.NDArray[np.float32]
    fired: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program in the hook's memory, checked, not in force yet."""

    address: int


def _ints(values: Sequence[int] | None) -> c.Array[c.c_int32] | None:
    return None if values is None else (c.c_int32 * len(values))(*values)


class Hook:
    """One hook, for one context: see scope_hook.h for what each call means and which thread may make it.

    Args:
        n_embd: width of the residual stream.
        n_layer: number of blocks.
        ring_events: room for events between two drains.
    """

    def __init__(self, n_embd: int, n_layer: int, ring_events: int = 4096) -> None:
        self._lib = library()
        self._error = c.create_string_buffer(ERR_BYTES)
        self._handle = c.c_void_p()
        self.n_embd = n_embd
        self.n_layer = n_layer
        self._serial = 0
        self._drained = (RawEvent * 64)()
        self._check(
            self._lib.scope_hook_new(
                n_embd, n_layer, ring_events, c.byref(self._handle), self._error, ERR_BYTES
            )
        )

    def _check(self, code: int) -> None:
        if code < 0:
            raise HookError(
                self._error.value.decode() or f"the native hook failed with code {code}"
            )

    @property
    def handle(self) -> int:
        """The hook's address: ``cb_eval_user_data``."""
        if not self._handle.value:
            raise HookError("the hook is closed")
        return self._handle.value

    @property
    def callback(self) -> int:
        """The eval callback's address: ``cb_eval``."""
        return int(self._lib.scope_hook_callback())

    def close(self) -> None:
        """Frees the hook; the context must be gone. Safe to call twice."""
        if self._handle.value:
            self._lib.scope_hook_free(self._handle)
            self._handle = c.c_void_p()

    # -- programs

    def load(self, blob: bytes) -> LoadedProgram:
        """Copies and checks a program, which takes as long as it is large; any thread may.

        Raises HookError when the blob is not sound.
        """
        error = c.create_string_buffer(ERR_BYTES)
        program = c.c_void_p()
        code = self._lib.scope_program_load(blob, len(blob), c.byref(program), error, ERR_BYTES)
        if code < 0 or not program.value:
            raise HookError(error.value.decode() or f"the native hook failed with code {code}")
        return LoadedProgram(program.value)

    def unload(self, loaded: LoadedProgram) -> None:
        """Frees a program that was loaded and not installed."""
        self._lib.scope_program_free(loaded.address)

    def install(self, blob: bytes | LoadedProgram) -> int:
        """Loads, checks and swaps in a program; returns the serial that names it in events and spans.

        One that was loaded before is the hook's from here on, whatever comes of it. Raises HookError and changes
        nothing when the blob is not sound or does not fit the model.
        """
        return self._hand_over(blob, self._lib.scope_hook_install)

    def hold(self, blob: bytes | LoadedProgram) -> int:
        """Loads and checks a program for ``assign``, kept until ``release``; returns its serial.

        Errors are install's.
        """
        return self._hand_over(blob, self._lib.scope_hook_hold)

    def _hand_over(self, blob: bytes | LoadedProgram, take: Callable[..., int]) -> int:
        loaded = blob if isinstance(blob, LoadedProgram) else self.load(blob)
        program = c.c_void_p(loaded.address)
        serial = self._serial + 1
        code = take(self.handle, program, serial, self._error, ERR_BYTES)
        if code < 0:
            self._lib.scope_program_free(program)
            self._check(code)
        self._serial = serial
        self._lib.scope_hook_collect(self.handle)
        return serial

    def release(self, serial: int) -> None:
        """Lets go of a held program: it is freed once nothing runs under it. Raises HookError where it is not held."""
        if self._lib.scope_hook_release(self.handle, serial) < 0:
            raise HookError(f"program {serial} is not held")

    def assign(self, programs: Mapping[int, int], others: int = 0) -> int:
        """From the next ubatch on each sequence runs under its serial, all others under ``others`` (0: nothing).

        All of them change at once. Returns the assignment's number. Raises HookError and changes nothing where a
        serial is neither held nor in force.
        """
        number = c.c_uint64()
        self._check(
            self._lib.scope_hook_assign(
                self.handle,
                others,
                _ints(list(programs)),
                (c.c_uint64 * len(programs))(*programs.values()),
                len(programs),
                c.byref(number),
                self._error,
                ERR_BYTES,
            )
        )
        return number.value

    @property
    def in_force(self) -> bool:
        """Whether every token from now on, and the ones under way, are computed under the newest assignment."""
        return bool(self._lib.scope_hook_in_force(self.handle))

    @property
    def assignment(self) -> int:
        """Number of the assignment that the last ubatch ran under; 0 before the first."""
        return int(self._lib.scope_hook_assignment(self.handle))

    def collect(self) -> int:
        """Frees retired programs; returns how many must still wait."""
        return int(self._lib.scope_hook_collect(self.handle))

    @property
    def acknowledged(self) -> int:
        """Serial that the last ubatch gave to sequences without one of their own; 0 before the first."""
        return int(self._lib.scope_hook_acknowledged(self.handle))

    # -- attach

    @property
    def attached(self) -> int:
        """Which attach points were seen to work: ATTACH_* bits."""
        return int(self._lib.scope_hook_attached(self.handle))

    def bind_memory(self, memory: int) -> None:
        self._check(self._lib.scope_hook_bind_memory(self.handle, memory, self._error, ERR_BYTES))

    def chain(self, callback: int, user_data: int) -> None:
        self._lib.scope_hook_chain(self.handle, callback, user_data)

    def expect_columns(
        self, tokens: Sequence[int], pos: Sequence[int], seq: Sequence[int], output: Sequence[int]
    ) -> None:
        wanted = (c.c_int8 * len(output))(*output)
        self._check(
            self._lib.scope_hook_expect_columns(
                self.handle, len(tokens), _ints(tokens), _ints(pos), _ints(seq), wanted
            )
        )

    def embedding_node(self, name: str | None) -> None:
        self._check(
            self._lib.scope_hook_embedding_node(self.handle, name.encode() if name else None)
        )

    def record_names(self, on: bool) -> None:
        self._lib.scope_hook_record_names(self.handle, int(on))

    def names(self) -> list[str]:
        """Names of the residual nodes seen since recording was switched on, in graph order."""
        buffer = c.create_string_buffer(1 << 16)
        n = self._lib.scope_hook_names(self.handle, buffer, len(buffer))
        return [name for name in buffer.raw[:n].decode(errors="replace").split("\n") if name]

    # -- by hand

    def columns(
        self,
        tokens: Sequence[int],
        pos: Sequence[int],
        seq: Sequence[int] | None = None,
        output: Sequence[int] | None = None,
    ) -> None:
        """Begins an ubatch by hand; sequences default to 0, outputs to all."""
        n = len(tokens)
        wanted = None if output is None else (c.c_int8 * n)(*output)
        self._check(
            self._lib.scope_hook_columns(
                self.handle, n, _ints(tokens), _ints(pos), _ints(seq or [0] * n), wanted
            )
        )

    def residual(self, layer: int, h: npt.NDArray[np.float32]) -> bool:
        """Runs the program at one hook point on ``h`` (n_rows, n_embd), in place; True if it changed anything."""
        if h.dtype != np.float32 or not h.flags.c_contiguous or h.ndim != 2:
            raise HookError("residuals must be a C-contiguous F32 array (n_rows, n_embd)")
        if h.shape[1] != self.n_embd:
            raise HookError(
                "residuals of another width", found=str(h.shape[1]), expected=str(self.n_embd)
            )
        changed = self._lib.scope_hook_residual(self.handle, layer, h.ctypes.data_as(f32p), len(h))
        self._check(changed)
        return bool(changed)

    def end_ubatch(self) -> None:
        self._lib.scope_hook_end_ubatch(self.handle)

    # -- capture

    def capture(self, layers: Sequence[int], capacity_rows: int = 0) -> None:
        """Copies the residuals that arrive at these layers, at most ``capacity_rows`` between takes; none: no more."""
        code = self._lib.scope_hook_capture(
            self.handle, _ints(layers), len(layers), capacity_rows if layers else 0
        )
        if code < 0:
            raise HookError(
                "these layers cannot be captured",
                found=", ".join(map(str, layers)),
                expected=f"-1 (the embedding) to {self.n_layer - 1}",
            )

    def captured(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Takes what waits: (n, 4) of layer, sequence, position, token, and (n, n_embd).

        Raises:
            HookError: rows were lost, because there were more than the capacity.
        """
        lost = c.c_uint64()
        n = self._lib.scope_hook_captured(self.handle, c.byref(lost))
        rows = np.empty((n, 4), np.int32)
        h = np.empty((n, self.n_embd), np.float32)
        self._lib.scope_hook_take_captured(
            self.handle, rows.ctypes.data_as(c.POINTER(CapturedRow)), h.ctypes.data_as(f32p)
        )
        if lost.value:
            raise HookError(f"{lost.value} residuals found no room")
        return rows, h

    # -- requests

    def request_begin(self, seq: int, request_id: int, n_prompt: int) -> None:
        self._check_state(
            self._lib.scope_request_begin(self.handle, seq, request_id, n_prompt), seq
        )

    def request_end(self, seq: int) -> None:
        self._check_state(self._lib.scope_request_end(self.handle, seq), seq)

    def request_status(self, seq: int) -> RequestState:
        state = RequestState()
        self._check_state(self._lib.scope_request_status(self.handle, seq, c.byref(state)), seq)
        return state

    @staticmethod
    def _check_state(code: int, seq: int) -> None:
        if code < 0:
            raise HookError(f"sequence {seq} has no request in the state that this call needs")

    def spans(self, seq: int) -> list[Span]:
        """Under which programs the sequence's KV was computed, by ascending position."""
        room = 16
        while True:
            out = (RawSpan * room)()
            n = self._lib.scope_sequence_spans(self.handle, seq, out, room)
            if n <= room:
                return [Span(s.from_position, s.to_position, s.serial) for s in out[:n]]
            room = n

    def measured(self, seq: int, position: int, n_rules: int) -> Measured | None:
        """One token's measurements, or None when that position is not known."""
        activation = np.full(n_rules, np.nan, np.float32)
        dose = np.full(n_rules, np.nan, np.float32)
        fired = np.zeros(n_rules, np.uint8)
        n = self._lib.scope_sequence_measured(
            self.handle,
            seq,
            position,
            activation.ctypes.data_as(f32p),
            dose.ctypes.data_as(f32p),
            fired.ctypes.data_as(c.POINTER(c.c_uint8)),
            n_rules,
        )
        return Measured(activation, dose, fired.astype(np.bool_)) if n else None

    # -- memory: llama.cpp's own functions, through the exports that take note

    def llama_memory_clear(self, memory: int) -> None:
        self._lib.llama_memory_clear(memory, True)

    def llama_memory_seq_rm(self, memory: int, seq: int, first: int, end: int) -> bool:
        """False, and nothing changed, where the memory cannot drop a part of a sequence."""
        return bool(self._lib.llama_memory_seq_rm(memory, seq, first, end))

    def llama_memory_seq_cp(
        self, memory: int, source: int, target: int, first: int, end: int
    ) -> None:
        self._lib.llama_memory_seq_cp(memory, source, target, first, end)

    def llama_memory_seq_add(self, memory: int, seq: int, first: int, end: int, delta: int) -> None:
        self._lib.llama_memory_seq_add(memory, seq, first, end, delta)

    # -- memory, notes alone

    def memory_clear(self) -> None:
        self._lib.scope_memory_clear(self.handle)

    def memory_seq_rm(self, seq: int, first: int, end: int) -> None:
        self._lib.scope_memory_seq_rm(self.handle, seq, first, end)

    def memory_seq_add(self, seq: int, first: int, end: int, delta: int) -> None:
        self._lib.scope_memory_seq_add(self.handle, seq, first, end, delta)

    def memory_restored(self, seq: int, n_positions: int) -> None:
        self._lib.scope_memory_restored(self.handle, seq, n_positions)

    # -- events

    def drain(self) -> list[RawEvent]:
        """Takes every event out of the ring, oldest first."""
        out: list[RawEvent] = []
        room = len(self._drained)
        while True:
            n = self._lib.scope_hook_drain(self.handle, self._drained, room)
            out += [RawEvent.from_buffer_copy(self._drained[i]) for i in range(n)]
            if n < room:
                return out

    @property
    def dropped(self) -> int:
        """Events that found the ring full."""
        return int(self._lib.scope_hook_dropped(self.handle))

    @property
    def stats(self) -> HookStats:
        out = HookStats()
        self._lib.scope_hook_get_stats(self.handle, c.byref(out))
        return out
