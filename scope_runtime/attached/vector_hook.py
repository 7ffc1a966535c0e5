"""A llama-server that is steered without a hook: by a control vector that it is given when it starts.

Nobody sees what it computes. What it runs under is known because it was started so, and with nothing else; each
process has one program from its start to its end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scope_runtime.attached.interface import Ask, AttachedStatus, SlotState
from scope_runtime.attached.process import Process
from scope_runtime.errors import HookError, UsageError
from scope_runtime.native.abi import RawEvent
from scope_runtime.native.hook import Span
from scope_runtime.program import Program
from scope_runtime.types import ModelShape
from scope_runtime.vectors import write_control_vector

BY_CONSTRUCTION = (
    "by construction: the control vector that the server was started with, or none; "
    "no hook observes it, so there are no doses"
)
"""How it is known that requests are steered, for records and people."""

_STARTED_WITH = "started-with.json"
_NO_END = 2**31 - 1


@dataclass(frozen=True, slots=True)
class StartedWith:
    """The program that a server process was started with: what it does, and what it is called."""

    digest: str
    revision: str

    @classmethod
    def of(cls, program: Program) -> StartedWith:
        return cls(program.digest, program.revision)


class VectorSteering:
    """Servers that are started with a control vector: an `interface.Steering`.

    Args:
        folder: of the server; the vector's file is written there.
        program: what the next server is to run under. All of it is in its control vectors.
    """

    def __init__(self, folder: Path, program: Callable[[], Program]) -> None:
        self._folder = folder
        self._program = program

    def check(self, program: Path) -> None:
        """Whatever llama-server it is: nothing has to come into it."""

    def write(self, program: Program) -> Path | None:
        """Writes a program's control vector, before anything is ended for it; None: it adds nothing.

        Raises:
            ScopeError: it cannot be written, or not be named to llama-server.
        """
        if program.hooks:
            raise HookError("the program needs a hook: not all of it is in its control vector")
        if not program.control_vectors:
            return None
        path = (self._folder / f"vector-{program.digest.rpartition(':')[2][:16]}.gguf").absolute()
        if "," in str(path):
            raise UsageError(
                "llama-server takes a comma for the end of a file's name",
                found=str(path),
                hint="Give a --state without one",
            )
        write_control_vector(path, program.control_vectors, model_hint=program.architecture)
        return path

    def create(self, control: Path, shape: ModelShape) -> VectorHook:
        """For a server that is to be started with what is in force now."""
        program = self._program()
        vector, started_with = self.write(program), StartedWith.of(program)
        for old in self._folder.glob("vector-*.gguf"):
            if vector is None or old.name != vector.name:
                old.unlink(missing_ok=True)
        try:
            control.mkdir(mode=0o700)
            (control / _STARTED_WITH).write_text(json.dumps(asdict(started_with)))
        except OSError as error:
            raise HookError(
                f"cannot make the control folder {control}", found=str(error)
            ) from error
        return VectorHook(started_with, vector)

    def adopt(self, control: Path) -> VectorHook:
        """Of a server that runs under what is in force now, and under nothing else since it began."""
        try:
            started_with = StartedWith(**json.loads((control / _STARTED_WITH).read_bytes()))
        except (OSError, ValueError, TypeError):
            raise HookError("it was not started with a control vector of ours") from None
        if started_with != StartedWith.of(self._program()):
            raise HookError("it was started under other policies")
        return VectorHook(started_with, None, fresh=False)


class VectorHook:
    """Stands where a hook would: an `interface.AttachedHook` of which everything is known beforehand.

    Args:
        started_with: the program of the server's process.
        vector: its control vector's file; None: it adds nothing.
        fresh: the server's slots are empty; else nobody knows what is in them.
    """

    def __init__(self, started_with: StartedWith, vector: Path | None, fresh: bool = True) -> None:
        self.started_with = started_with
        self.n_ended = 0
        self._vector = vector
        self._process: Process | None = None
        self._stopped = False
        self._lock = threading.Lock()  # of what follows
        self._serial = 0
        self._programs: dict[int, str] = {}
        self._slots: dict[int, SlotState] = {}
        self._unknown = () if fresh else None

    @property
    def environment(self) -> Mapping[str, str]:
        return {}

    @property
    def arguments(self) -> Sequence[str]:
        return () if self._vector is None else ("--control-vector", str(self._vector))

    def runs_in(self, process: Process) -> None:
        self._process = process

    def stop(self) -> None:
        """The server is to end: from here on nothing of it counts, and no state of a slot is told."""
        self._stopped = True

    @property
    def alive(self) -> bool:
        process = self._process
        return process is not None and not self._stopped and not process.ended()

    @property
    def status(self) -> AttachedStatus:
        return AttachedStatus(
            pid=self._process.pid if self._process is not None else 0,
            proved=True,
            callback=False,
            columns=False,
            memory=False,
            embedding_node=None,
            n_ubatches=0,
            n_columns=0,
            n_unmatched=0,
            n_unsteered_columns=0,
            hook_ns=0,
            n_swaps=0,
            swap_ns=0,
            swap_ns_max=0,
            n_dropped=0,
            words=(BY_CONSTRUCTION,),
        )

    def wait_loaded(self, timeout_s: float) -> None:
        """There is nothing to load."""

    def prove(self, ask: Ask, tokens: Sequence[int], slot: int = 0) -> None:
        """Shows that the server answers; a control vector that it cannot take ends it before that."""
        ask(tokens, slot)

    # -- programs: as many names as are asked for, of the one that there is

    def hold(self, blob: bytes) -> int:
        with self._lock:
            self._serial += 1
            self._programs[self._serial] = self.started_with.digest
            return self._serial

    def release(self, serial: int) -> None:
        with self._lock:
            self._programs.pop(serial, None)

    def assign(self, programs: Mapping[int, int], others: int = 0) -> None:
        if programs or others:
            raise HookError("a control vector is changed by starting the server again")

    @property
    def programs(self) -> Mapping[int, str]:
        with self._lock:
            return dict(self._programs)

    # -- requests

    def begin(
        self, slot: int, request_id: int, serial: int, n_prompt: int | None = None
    ) -> SlotState:
        if not self.alive:
            raise HookError("the server is gone")
        with self._lock:
            state = self._slot(slot)
            state = replace(state, request_id=request_id, serial=serial, first_serial=serial)
            self._slots[slot] = state
            return state

    def end(self, slot: int) -> SlotState:
        """Also of a server that is gone: what the slot ran under is known all the same."""
        with self._lock:
            state = self._slot(slot)
            if state.request_id is not None:
                self.n_ended += 1
                # All that the process ever computed, here too, was under the one program.
                state = replace(state, request_id=None, spans=(Span(0, _NO_END, state.serial),))
            self._slots[slot] = state
            return state

    def slot(self, slot: int) -> SlotState:
        if self._stopped:
            raise HookError("the server is ended")
        with self._lock:
            return self._slot(slot)

    def _slot(self, slot: int) -> SlotState:
        empty = SlotState(slot, None, 0, 0, 0, 0, 0, None, -1, None, self._unknown)
        return self._slots.get(slot, empty)

    def drain(self) -> list[RawEvent]:
        return []

    def close(self) -> None:
        """There is nothing to let go of."""
