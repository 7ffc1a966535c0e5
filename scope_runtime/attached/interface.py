"""What a gateway may ask of a hook in another process: the contract, and nothing that needs one.

The order of a request on a slot (llama-server: slot number = sequence = ``id_slot``):

    state = hook.begin(slot, number, serial)   # the slot must be free; returns once the hook has acknowledged
    … is state.spans all of this program? then cache_prompt may be true …
    HTTP request with id_slot=slot             # while it runs: hook.slot(slot).abort tells when to end it
    end = hook.end(slot)                       # when the server no longer works on the slot
    … end.n_unsteered == 0, end.spans are the record; hook.drain() has its events …

A program is held first (`hold`), which takes as long as it is large; `begin` and `assign` are one pointer then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scope_runtime.attached.process import Process
from scope_runtime.native.abi import RawEvent
from scope_runtime.native.hook import Span
from scope_runtime.types import ModelShape

Ask = Callable[[Sequence[int], int], object]
"""Sends token ids as a prompt to a slot: greedy, one token, no cache. Returns what of the answer depends on the logits:
token and log probabilities (llama-server leaves those out where the token is half a character)."""


@dataclass(frozen=True, slots=True)
class SlotAbort:
    """Why a generation must end: an alert's rule, or (``rule`` None) the dose limit, of program ``serial``."""

    rule: int | None
    serial: int
    position: int


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot as the hook saw it at the last ubatch, or at its own begin or end.

    Attributes:
        request_id: of the open request; None: none is open, and what runs here is unsteered and counted as such.
        serial: program that the slot runs under; 0: nothing.
        first_serial: program that the request's first token was computed under; 0 until that is known.
        n_columns: tokens of the request so far, without those that were in the KV before.
        n_unsteered: of those, how many were not steered (images, KV shared with another program). For a policy that
            enforces, anything but 0 means that the answer must not go out as steered.
        n_stray: tokens computed here while no request was open, since the server started. It must not grow.
        answer_start: position of the first column in phase ``generation``; None until it is known.
        last_position: -1: nothing computed yet.
        abort: the generation must end, and why.
        spans: which program each position of the slot's KV was computed under, as of the last begin or end; None
            where there are more of them than fit (then trust none).
    """

    slot: int
    request_id: int | None
    serial: int
    first_serial: int
    n_columns: int
    n_unsteered: int
    n_stray: int
    answer_start: int | None
    last_position: int
    abort: SlotAbort | None
    spans: tuple[Span, ...] | None


@dataclass(frozen=True, slots=True)
class AttachedStatus:
    """The hook in the server.

    Attributes:
        pid: of the server.
        proved: the hook has recognised the main context and the layout of its batches (`SharedHook.prove`).
        callback, columns, memory: attach points that were seen to work.
        embedding_node: name of the node before block 0; None: not known, and so not steerable.
        n_unmatched: hook points that were not steered though they should have been: an error, must not grow.
        n_dropped: events that found the ring full.
        words: sentences for people: what works, what does not and why.
    """

    pid: int
    proved: bool
    callback: bool
    columns: bool
    memory: bool
    embedding_node: str | None
    n_ubatches: int
    n_columns: int
    n_unmatched: int
    n_unsteered_columns: int
    hook_ns: int
    n_swaps: int
    swap_ns: int
    swap_ns_max: int
    n_dropped: int
    words: tuple[str, ...]


class AttachedHook(Protocol):
    """A hook in another process. Calls may come from any thread and block for at most an ubatch, `hold` for a load.

    Everything raises HookError when the server is gone, when it does not answer in time, or when it refuses, with its
    sentence; what was in force stays in force.
    """

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables to start llama-server with: the preload and the control folder."""

    @property
    def arguments(self) -> Sequence[str]:
        """Arguments to start llama-server with, beside its user's."""

    def runs_in(self, process: Process) -> None:
        """Told which process it is for, before anything is asked of that."""

    @property
    def alive(self) -> bool:
        """Whether a server holds the control folder."""

    @property
    def status(self) -> AttachedStatus: ...

    def wait_loaded(self, timeout_s: float) -> None:
        """Returns once the server's process has the hook in it.

        Raises HookError in words when it never does: a static program, one that drops LD_PRELOAD.
        """

    def prove(self, ask: Ask, tokens: Sequence[int], slot: int = 0) -> None:
        """Shows, before anything is served, that the hook sees and changes what it should.

        Sends known tokens alone and compares what the hook saw of them, then adds to every block's output and
        compares the answers. Raises HookError in words: layout, model family, static or router server.
        """

    def hold(self, blob: bytes) -> int:
        """Gives the server's hook a program to run requests under; returns its serial."""

    def release(self, serial: int) -> None:
        """Lets go of a program: it is freed once no slot runs under it."""

    def assign(self, programs: Mapping[int, int], others: int = 0) -> None:
        """From the next ubatch on each slot runs under its serial, all others under ``others``; one swap."""

    def begin(
        self, slot: int, request_id: int, serial: int, n_prompt: int | None = None
    ) -> SlotState:
        """A request is about to be sent to a free slot, to run under ``serial``.

        Args:
            n_prompt: tokens of its prompt, where they are known for certain; None: the hook finds where the answer
                starts by the first token whose logits the server asks for, which is the same and needs no tokenizer.
        """

    def end(self, slot: int) -> SlotState:
        """The server has finished with the slot; its summaries are in the ring when this returns."""

    def slot(self, slot: int) -> SlotState:
        """The slot now; one read of shared memory."""

    def drain(self) -> list[RawEvent]:
        """Takes every event out of the ring, oldest first; `EventReader` puts names to them, by serial."""

    @property
    def programs(self) -> Mapping[int, str]:
        """Serial to digest (``sha256:…`` of the blob's own header) of what is held: for one who adopts a server."""

    def close(self) -> None:
        """Lets go of the files; the server goes on as it is and can be adopted."""


class Steering(Protocol):
    """How servers come to be steered: what makes the hook of each."""

    def check(self, program: Path) -> None:
        """Refuses a program that cannot be steered so. Raises HookError."""

    def create(self, control: Path, shape: ModelShape) -> AttachedHook:
        """For a server that is to be started. Raises ScopeError."""

    def adopt(self, control: Path) -> AttachedHook:
        """Of a server that runs. Raises ScopeError or OSError: it is not steered so."""
