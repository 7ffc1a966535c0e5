"""``scope_shared.h`` in ctypes: the files through which a hook in another process is controlled.

A thin class over the native controller, as ``hook`` is over the hook; nothing here knows what a program is for.
"""

from __future__ import annotations

import ctypes as c
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from scope_runtime.errors import HookError
from scope_runtime.native.abi import ERR_BYTES, HookStats, RawEvent, RawSpan, library

MAX_SLOTS, MAX_EXPECTED, MAX_SPANS = 256, 64, 64
NONE, LOADED, REACHED, RECOGNISED, REFUSED = range(5)

_HOLD, _RELEASE, _ASSIGN, _BEGIN, _END, _EXPECT = range(1, 7)


class _SlotSerial(c.Structure):
    _fields_ = [("slot", c.c_int32), ("reserved", c.c_uint32), ("serial", c.c_uint64)]


class _Arrays(c.Union):
    _fields_ = [("assigned", _SlotSerial * MAX_SLOTS), ("tokens", c.c_int32 * MAX_EXPECTED)]


class Command(c.Structure):
    """``scope_command``."""

    _anonymous_ = ("arrays",)
    _fields_ = [
        ("kind", c.c_uint32),
        ("slot", c.c_int32),
        ("serial", c.c_uint64),
        ("request_id", c.c_uint64),
        ("n_prompt", c.c_int32),
        ("n", c.c_uint32),
        ("arrays", _Arrays),
    ]


class RawStatus(c.Structure):
    """``scope_server_status``."""

    _fields_ = [
        ("abi_version", c.c_uint32),
        ("state", c.c_uint32),
        ("pid", c.c_uint64),
        ("last_serial", c.c_uint64),
        ("attached", c.c_uint32),
        ("n_layers_seen", c.c_uint32),
        ("stats", HookStats),
        ("embedding_node", c.c_char * 64),
        ("sentence", c.c_char * 256),
    ]


class RawSlot(c.Structure):
    """``scope_slot_state``."""

    _fields_ = [
        ("slot", c.c_int32),
        ("open", c.c_uint32),
        ("request_id", c.c_uint64),
        ("serial", c.c_uint64),
        ("first_serial", c.c_uint64),
        ("n_columns", c.c_uint64),
        ("n_unsteered", c.c_uint64),
        ("n_stray", c.c_uint64),
        ("answer_start", c.c_int32),
        ("last_position", c.c_int32),
        ("abort", c.c_uint32),
        ("abort_rule", c.c_uint32),
        ("abort_serial", c.c_uint64),
        ("abort_position", c.c_int32),
        ("n_spans", c.c_uint32),
        ("spans", RawSpan * MAX_SPANS),
    ]


def hold(serial: int) -> Command:
    """Load ``program-SERIAL.bin``."""
    return Command(kind=_HOLD, serial=serial)


def release(serial: int) -> Command:
    """Let go of a held program."""
    return Command(kind=_RELEASE, serial=serial)


def assign(programs: Mapping[int, int], others: int) -> Command:
    """Slot to serial, all of them at once."""
    command = Command(kind=_ASSIGN, serial=others, n=len(programs))
    for i, (slot, serial) in enumerate(programs.items()):
        command.assigned[i] = _SlotSerial(slot, 0, serial)
    return command


def begin(slot: int, request_id: int, serial: int, n_prompt: int) -> Command:
    """``n_prompt`` 0: found by the first token whose logits are wanted."""
    return Command(kind=_BEGIN, slot=slot, request_id=request_id, serial=serial, n_prompt=n_prompt)


def end(slot: int) -> Command:
    """Sum up the slot's request."""
    return Command(kind=_END, slot=slot)


def expect(slot: int, tokens: Sequence[int]) -> Command:
    """Recognise the context that these come to, from position 0."""
    command = Command(kind=_EXPECT, slot=slot, n=len(tokens))
    command.tokens[: len(tokens)] = list(tokens)
    return command


@functools.cache
def _library() -> c.CDLL:
    lib = library()
    vp, u32, u64, i32, size = c.c_void_p, c.c_uint32, c.c_uint64, c.c_int32, c.c_size_t
    err = (c.c_char_p, size)
    signatures = {
        "scope_control_create": (c.c_int, (c.c_char_p, u32, u32, u32, c.POINTER(vp), *err)),
        "scope_control_open": (c.c_int, (c.c_char_p, c.POINTER(vp), *err)),
        "scope_control_close": (None, (vp,)),
        "scope_control_model": (None, (vp, c.POINTER(u32), c.POINTER(u32))),
        "scope_control_alive": (c.c_int, (vp,)),
        "scope_control_send": (c.c_int, (vp, c.POINTER(Command), c.POINTER(u64), *err)),
        "scope_control_wait": (c.c_int, (vp, u64, i32, c.POINTER(i32), *err)),
        "scope_control_abandon": (None, (vp, u64)),
        "scope_control_status": (c.c_int, (vp, c.POINTER(RawStatus))),
        "scope_control_slot": (c.c_int, (vp, i32, c.POINTER(RawSlot))),
        "scope_control_drain": (size, (vp, c.POINTER(RawEvent), size)),
        "scope_control_dropped": (u64, (vp,)),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(lib, name)
        function.restype = restype
        function.argtypes = argtypes
    return lib


class Control:
    """The control file of a folder, as its one controller. Any thread may call; `drain` one at a time.

    Args:
        shape: (n_embd, n_layer) to make a new file for; None: take over the one that is there.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int] | None, ring_events: int = 4096
    ) -> None:
        self._lib = _library()
        self._handle = c.c_void_p()
        self._drained = (RawEvent * 64)()
        error = c.create_string_buffer(ERR_BYTES)
        where = str(folder).encode()
        out = c.byref(self._handle)
        if shape is None:
            code = self._lib.scope_control_open(where, out, error, ERR_BYTES)
        else:
            code = self._lib.scope_control_create(where, *shape, ring_events, out, error, ERR_BYTES)
        if code < 0:
            raise HookError(error.value.decode() or f"the control file failed with code {code}")

    @property
    def handle(self) -> int:
        if not self._handle.value:
            raise HookError("the control file is closed")
        return self._handle.value

    def close(self) -> None:
        """Lets go of the file; safe to call twice. No other call may be under way."""
        if self._handle.value:
            self._lib.scope_control_close(self._handle)
            self._handle = c.c_void_p()

    @property
    def shape(self) -> tuple[int, int]:
        n_embd, n_layer = c.c_uint32(), c.c_uint32()
        self._lib.scope_control_model(self.handle, c.byref(n_embd), c.byref(n_layer))
        return n_embd.value, n_layer.value

    @property
    def alive(self) -> bool:
        return bool(self._lib.scope_control_alive(self.handle))

    def send(self, command: Command) -> int:
        """Queues a command; returns the number to wait for, until it is applied or abandoned."""
        number = c.c_uint64()
        error = c.create_string_buffer(ERR_BYTES)
        code = self._lib.scope_control_send(
            self.handle, c.byref(command), c.byref(number), error, ERR_BYTES
        )
        if code < 0:
            raise HookError(error.value.decode())
        return number.value

    def wait(self, number: int, timeout_ms: int) -> tuple[int, str] | None:
        """The outcome: a code, negative for a refusal, and its sentence; None: not applied yet."""
        code = c.c_int32()
        error = c.create_string_buffer(ERR_BYTES)
        applied = self._lib.scope_control_wait(
            self.handle, number, timeout_ms, c.byref(code), error, ERR_BYTES
        )
        return (code.value, error.value.decode(errors="replace")) if applied else None

    def abandon(self, number: int) -> None:
        self._lib.scope_control_abandon(self.handle, number)

    def status(self) -> RawStatus:
        out = RawStatus()
        if self._lib.scope_control_status(self.handle, c.byref(out)) < 0:
            raise HookError("the server died while it wrote its status")
        return out

    def slot(self, slot: int) -> RawSlot:
        out = RawSlot()
        if self._lib.scope_control_slot(self.handle, slot, c.byref(out)) < 0:
            raise HookError(
                "no such slot, or the server died while it wrote it",
                found=str(slot),
                expected=f"0 to {MAX_SLOTS - 1}",
            )
        return out

    def drain(self) -> list[RawEvent]:
        """Takes every event out of the ring, oldest first."""
        out: list[RawEvent] = []
        while True:
            n = self._lib.scope_control_drain(self.handle, self._drained, len(self._drained))
            out += [RawEvent.from_buffer_copy(self._drained[i]) for i in range(n)]
            if n < len(self._drained):
                return out

    @property
    def dropped(self) -> int:
        return int(self._lib.scope_control_dropped(self.handle))
