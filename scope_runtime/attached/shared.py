"""A hook in a running llama-server, over the files of a control folder: `interface.AttachedHook`, and how to prove it.

A folder is for one server process. Whoever opens it is its one controller; when that goes, even by SIGKILL, the server
goes on under what is in force, and the next controller takes over with `SharedHook.adopt`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scope_runtime.attached.interface import Ask, AttachedStatus, SlotAbort, SlotState
from scope_runtime.attached.preload import OTHERWISE, check_program
from scope_runtime.attached.process import Process
from scope_runtime.errors import HookError
from scope_runtime.native import shared
from scope_runtime.native.abi import (
    ATTACH_CALLBACK,
    ATTACH_COLUMNS,
    ATTACH_MEMORY,
    RawEvent,
    library_path,
)
from scope_runtime.native.hook import Span
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.probe_program import adding
from scope_runtime.types import ModelShape

_NO_RULE = 0xFFFFFFFF
_SUMMARY = 3
_PROGRAM = re.compile(r"program-(\d+)\.bin")
_DIGEST = slice(32, 64)  # of a blob: see scope_program.h
_LOOK_MS = 200  # between two looks at whether the server is still there


class Preloaded:
    """Servers with the hook in them: an `interface.Steering`."""

    def check(self, program: Path) -> None:
        check_program(program)

    def create(self, control: Path, shape: ModelShape) -> SharedHook:
        return SharedHook.create(control, shape)

    def adopt(self, control: Path) -> SharedHook:
        return SharedHook.adopt(control)


class SharedHook:
    """The controller of one server's hook. See `interface.AttachedHook` for each call.

    Args:
        control: the folder's control file.
        folder: private to this user; for one server process.
        timeout_s: how long a command may take: a program's load, or the longest ubatch.
    """

    def __init__(self, control: shared.Control, folder: Path, timeout_s: float = 60.0) -> None:
        self._control = control
        self._folder = folder
        self._timeout_s = timeout_s
        self._mutex = threading.Lock()  # of the two below; commands themselves run side by side
        self._programs = _program_files(folder)
        self._status: AttachedStatus | None = None
        self._serial = max([int(control.status().last_serial), *self._programs])
        self._drain = threading.Lock()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        shape: ModelShape,
        *,
        ring_events: int = 4096,
        timeout_s: float = 60.0,
    ) -> SharedHook:
        """Prepares a folder, which is made, for a server that is to be started with `environment`.

        Raises:
            HookError: there is one already, or it cannot be made.
        """
        where = Path(folder).absolute()
        try:
            where.mkdir(mode=0o700, exist_ok=True)
            made = where.lstat()
        except OSError as error:
            raise HookError(f"cannot make the control folder {where}", found=str(error)) from error
        if made.st_uid != os.geteuid() or made.st_mode & 0o077:
            raise HookError(
                f"others may reach into the control folder {where}",
                found=f"mode {made.st_mode & 0o777:o} of user {made.st_uid}",
                expected=f"mode 700 of user {os.geteuid()}",
            )
        control = shared.Control(where, (shape.n_embd, shape.n_layer), ring_events)
        return cls(control, where, timeout_s)

    @classmethod
    def adopt(cls, folder: str | Path, *, timeout_s: float = 60.0) -> SharedHook:
        """Takes over a running server from a controller that is gone.

        Raises:
            HookError: the folder has a controller, or no server, or is of another version.
        """
        where = Path(folder).absolute()
        control = shared.Control(where, None)
        if not control.alive:
            control.close()
            raise HookError(f"no server holds the control folder {where}")
        return cls(control, where, timeout_s)

    def close(self) -> None:
        self._control.close()

    # -- the server

    @property
    def environment(self) -> dict[str, str]:
        before = os.environ.get("LD_PRELOAD")
        return {
            "LD_PRELOAD": f"{library_path()}:{before}" if before else str(library_path()),
            "SCOPE_SHM": str(self._folder),
        }

    @property
    def arguments(self) -> tuple[str, ...]:
        return ()

    def runs_in(self, process: Process) -> None:
        pass  # the server's hook says itself where it is

    @property
    def alive(self) -> bool:
        return self._control.alive

    @property
    def status(self) -> AttachedStatus:
        try:
            raw = self._control.status()
        except HookError:
            if self._status is None:
                raise
            return self._status  # it was killed while it wrote: what it said before
        stats, attached = raw.stats, raw.attached
        self._status = AttachedStatus(
            pid=raw.pid,
            proved=raw.state == shared.RECOGNISED,
            callback=bool(attached & ATTACH_CALLBACK),
            columns=bool(attached & ATTACH_COLUMNS),
            memory=bool(attached & ATTACH_MEMORY),
            embedding_node=raw.embedding_node.decode(errors="replace") or None,
            n_ubatches=stats.n_ubatches,
            n_columns=stats.n_columns,
            n_unmatched=stats.n_unmatched,
            n_unsteered_columns=stats.n_unsteered_columns,
            hook_ns=stats.hook_ns,
            n_swaps=stats.n_swaps,
            swap_ns=stats.swap_ns,
            swap_ns_max=stats.swap_ns_max,
            n_dropped=self._control.dropped,
            words=_words(raw),
        )
        return self._status

    def wait_loaded(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while self._control.status().state == shared.NONE:
            if time.monotonic() > until:
                raise HookError(
                    "the server has started without the hook",
                    hint="A static program, a setuid one, or a wrapper that drops LD_PRELOAD cannot be steered",
                )
            time.sleep(0.01)  # nothing tells that a process has loaded a library

    def prove(self, ask: Ask, tokens: Sequence[int], slot: int = 0) -> None:
        if not 2 <= len(tokens) <= shared.MAX_EXPECTED:
            raise HookError(
                "a proof needs a few tokens",
                found=str(len(tokens)),
                expected=f"2 to {shared.MAX_EXPECTED}",
            )
        self._call(shared.expect(slot, tokens))
        plain = ask(tokens, slot)
        raw = self._control.status()
        if raw.state != shared.RECOGNISED:
            raise HookError(*_unproved(raw.state), hint=_UNPROVED_HINT)
        _, n_layer = self._control.shape
        if raw.n_layers_seen != n_layer:
            raise HookError(
                "this model family does not name every block's output l_out-N, so it cannot be steered",
                found=f"{raw.n_layers_seen} blocks",
                expected=f"{n_layer}",
                hint=OTHERWISE,
            )
        self._prove_effect(ask, tokens, slot, plain)
        if not self.status.memory:
            raise HookError(
                "the server changes its KV without the hook seeing it, so that its records would be wrong",
                hint=_UNPROVED_HINT,
            )

    def _prove_effect(self, ask: Ask, tokens: Sequence[int], slot: int, plain: object) -> None:
        """Adds to every hook point at once: each must be seen to act, and the answer must change."""
        n_embd, n_layer = self._control.shape
        rng = np.random.default_rng(1)
        first = [EMBEDDING] if self.status.embedding_node else []
        layers = [*first, *range(n_layer)]
        rows = {layer: rng.standard_normal(n_embd).astype(np.float32) for layer in layers}
        serial = self.hold(adding(ModelShape("", n_layer, n_embd), rows))
        try:
            self.drain()
            self.begin(slot, 0, serial)
            try:
                steered = ask(tokens, slot)
            finally:
                end = self.end(slot)
                self.assign({})
            fired = {e.rule for e in self.drain() if e.kind == _SUMMARY and e.n_fired > 0}
        finally:
            self.release(serial)
        silent = [layer for number, layer in enumerate(layers) if number not in fired]
        if silent or end.n_unsteered:
            raise HookError(f"the probe did not run at layers {silent}")
        if end.answer_start != len(tokens) - 1:
            raise HookError(
                "the answer's first token is not where the prompt ends",
                found=str(end.answer_start),
                expected=str(len(tokens) - 1),
            )
        if steered == plain:
            raise HookError("the probe ran but the answer did not change: steering would be silent")

    # -- programs

    def hold(self, blob: bytes) -> int:
        with self._mutex:
            self._serial += 1
            serial = self._serial
            path = self._program(serial)
            _write_private(path, blob)
            try:
                # In turn: serials must reach the hook ascending.
                self._call(shared.hold(serial))
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            self._programs[serial] = _digest(blob)
            return serial

    def release(self, serial: int) -> None:
        self._call(shared.release(serial))
        with self._mutex:
            self._programs.pop(serial, None)
        self._program(serial).unlink(missing_ok=True)

    def _program(self, serial: int) -> Path:
        return self._folder / f"program-{serial}.bin"

    @property
    def programs(self) -> Mapping[int, str]:
        with self._mutex:
            return dict(self._programs)

    def assign(self, programs: Mapping[int, int], others: int = 0) -> None:
        if len(programs) > shared.MAX_SLOTS:
            raise HookError("more slots than there can be", expected=str(shared.MAX_SLOTS))
        self._call(shared.assign(programs, others))

    # -- requests

    def begin(
        self, slot: int, request_id: int, serial: int, n_prompt: int | None = None
    ) -> SlotState:
        self._call(shared.begin(slot, request_id, serial, n_prompt or 0))
        return self.slot(slot)

    def end(self, slot: int) -> SlotState:
        self._call(shared.end(slot))
        return self.slot(slot)

    def slot(self, slot: int) -> SlotState:
        return _slot_state(self._control.slot(slot))

    def drain(self) -> list[RawEvent]:
        with self._drain:
            return self._control.drain()

    def _call(self, command: shared.Command) -> None:
        """Queues a command and waits for its outcome.

        Raises:
            HookError: refused; or the server is gone; or it took too long, and may still be applied.
        """
        if not self.alive:
            raise HookError("the server is gone, or has no hook in it")
        number = self._control.send(command)
        until = time.monotonic() + self._timeout_s
        while (outcome := self._control.wait(number, _LOOK_MS)) is None:
            gone = not self.alive
            if gone or time.monotonic() > until:
                self._control.abandon(number)
                raise HookError(
                    "the server is gone"
                    if gone
                    else f"the server's hook did not answer within {self._timeout_s:g} s"
                )
        code, sentence = outcome
        if code < 0:
            raise HookError(sentence or f"the server's hook refused with code {code}")


_UNPROVED_HINT = (
    "Use a llama-server built with shared libraries (the default), of a llama.cpp that this release knows; "
    + OTHERWISE
)


def _unproved(state: int) -> tuple[str]:
    if state < shared.REACHED:
        return (
            "llama.cpp's calls do not pass through the hook: the server is linked statically or with LTO, "
            "or is a router that loads its models in other processes",
        )
    return (
        "the hook did not recognise a known prompt in the server's batches: their layout is another one, "
        "or something else used the server meanwhile",
    )


def _words(raw: shared.RawStatus) -> tuple[str, ...]:
    words = []
    if raw.state == shared.NONE:
        words.append("no server has loaded the hook")
    elif raw.state == shared.LOADED:
        words.append("the hook is loaded; no call of llama.cpp has come to it yet")
    elif raw.state == shared.REACHED:
        words.append("llama.cpp's calls come to the hook; its context is not proved")
    else:
        words.append(f"context proved: {raw.n_layers_seen} blocks, batches may mix requests")
    if raw.sentence:
        words.append(raw.sentence.decode(errors="replace"))
    return tuple(words)


def _slot_state(raw: shared.RawSlot) -> SlotState:
    abort = None
    if raw.abort:
        rule = None if raw.abort_rule == _NO_RULE else int(raw.abort_rule)
        abort = SlotAbort(rule, raw.abort_serial, raw.abort_position)
    known = raw.n_spans <= shared.MAX_SPANS
    spans = (Span(s.from_position, s.to_position, s.serial) for s in raw.spans[: raw.n_spans])
    return SlotState(
        slot=raw.slot,
        request_id=raw.request_id if raw.open else None,
        serial=raw.serial,
        first_serial=raw.first_serial,
        n_columns=raw.n_columns,
        n_unsteered=raw.n_unsteered,
        n_stray=raw.n_stray,
        answer_start=raw.answer_start if raw.answer_start >= 0 else None,
        last_position=raw.last_position,
        abort=abort,
        spans=tuple(spans) if known else None,
    )


def _digest(blob: bytes) -> str:
    return f"sha256:{blob[_DIGEST].hex()}"


def _program_files(folder: Path) -> dict[int, str]:
    out = {}
    for path in folder.iterdir():
        name = _PROGRAM.fullmatch(path.name)
        if name is not None:
            with path.open("rb") as file:
                out[int(name[1])] = _digest(file.read(_DIGEST.stop))
    return out


def _write_private(path: Path, data: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise HookError(f"cannot write {path}", found=str(error)) from error
