"""A sequence of a context that requests share, and the request that has it now."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scope_runtime.llama.answer import Answer
from scope_runtime.llama.running import Running
from scope_runtime.llama.sampler import Sampler
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.select import ProgramSource

Told = object
"""A Piece, the Generation, or the exception that ended the request."""


@dataclass(eq=False, slots=True)
class Wish:
    """A request that was asked for: what it wants, and where its answer goes.

    Attributes:
        told: to its reader; the last is a Generation or an exception.
        gone: the reader went away.
        trial: policies that it alone runs under.
    """

    prompt: list[int]
    sampling: Sampling
    labels: Mapping[str, str]
    request_id: str | None
    cancelled: Callable[[], bool]
    began: Callable[..., None]
    timing: Timing
    trial: ProgramSource | None = None
    told: queue.SimpleQueue[Told] = field(default_factory=queue.SimpleQueue)
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def unwanted(self) -> bool:
        return self.gone.is_set() or self.cancelled()


@dataclass(eq=False, slots=True)
class Work:
    """A request on a sequence.

    Attributes:
        pending: tokens to compute next, in order.
        n_reused: prompt tokens whose KV was there already.
    """

    wish: Wish
    running: Running
    sampler: Sampler
    answer: Answer
    pending: list[int]
    n_reused: int


@dataclass(eq=False, slots=True)
class Slot:
    """A sequence.

    Attributes:
        held: tokens whose KV it holds, in order; ``held_prompt`` of them were a prompt, short of its last token.
    """

    sequence: int
    held: list[int] = field(default_factory=list)
    held_prompt: int = 0
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """One batch: columns of several sequences.

    Attributes:
        parts: per slot how many of its tokens are in it, and the column whose logits it draws from (None: not yet).
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    sequences: tuple[int, ...]
    output: tuple[int, ...]
    parts: tuple[tuple[Slot, int, int | None], ...]


def columns(slots: Sequence[Slot], n_batch: int) -> Columns:
    """What is computed next: a token of every answer, and of prompts as much as fits.

    Answers come first, so that a long prompt makes nobody wait for more than one batch.
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    output: list[int] = []
    parts: list[tuple[Slot, int, int | None]] = []
    busy = [(slot, slot.work) for slot in slots if slot.work is not None]
    for slot, work in sorted(busy, key=lambda each: len(each[1].pending)):
        n = min(len(work.pending), n_batch - len(tokens))
        if n == 0:
            continue
        ends = n == len(work.pending)
        tokens += work.pending[:n]
        positions += range(len(slot.held), len(slot.held) + n)
        sequences += [slot.sequence] * n
        output += [0] * (n - 1) + [int(ends)]
        parts.append((slot, n, len(tokens) - 1 if ends else None))
    return Columns(tuple(tokens), tuple(positions), tuple(sequences), tuple(output), tuple(parts))
