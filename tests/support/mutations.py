"""Damage without a plan: random changes to a sound file, and what a reader may do about them."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scope_runtime.errors import ScopeError

EXTREMES = (0, 1, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1)


def mutations(raw: bytes, n: int, seed: int) -> Iterator[bytes]:
    """``n`` damaged copies: bytes changed, cut, doubled, or a length replaced by an extreme."""
    rng = random.Random(seed)
    for _ in range(n):
        data = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            # Headers are a small part of most files, and the part that can mislead.
            at = rng.randrange(len(data) if rng.random() < 0.3 else min(len(data), 1500))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.choice((0, 1, 8, 9, 127, 128, 255))
            elif kind == 2:
                size = rng.choice((4, 8))
                extreme = rng.choice(EXTREMES) & ((1 << 8 * size) - 1)
                data[at : at + size] = extreme.to_bytes(size, "little")
            elif kind == 3:
                del data[at:]
            else:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            if not data:
                break
        yield bytes(data)


@contextmanager
def memory_limit(most_bytes: int) -> Iterator[None]:
    """Lets this process take at most that much more address space; beyond it is a MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + most_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def survive(
    reader: Callable[[Path], object], raw: bytes, file: Path, *, n: int, seed: int, most_bytes: int
) -> tuple[int, int]:
    """Runs the reader on ``n`` mutations of ``raw``.

    Anything but success and a ScopeError that names the file escapes; so does a MemoryError, when
    more than ``most_bytes`` are taken.

    Returns:
        How many were refused and how many read.
    """
    refused = read = 0
    reader_errors: list[str] = []
    with memory_limit(most_bytes):
        for data in mutations(raw, n, seed):
            file.write_bytes(data)
            try:
                reader(file)
                read += 1
            except ScopeError as error:
                refused += 1
                if not str(error).startswith(str(file)):
                    reader_errors.append(str(error))
    if reader_errors:
        raise AssertionError(f"errors that do not name the file: {reader_errors[:3]}")
    return refused, read
