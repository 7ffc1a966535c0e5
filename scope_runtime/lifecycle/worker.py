"""The process in which policies are compiled, at low priority, so that no token waits for it.

It is a process and not a thread because compiling holds Python's interpreter lock, and because a crash in it must
not be a crash of the model. Orders come on stdin, answers go to stdout: eight bytes of length, then a pickle. What is
large in an answer, programs and packs, lies in a file without a name that both ends hold: it is copied once, by the
system, while the other end's threads run. Both ends are the same program of the same user; nothing else can write to
these pipes.
"""

from __future__ import annotations

import gc
import os
import pickle
import struct
import sys
from typing import Any, BinaryIO, NamedTuple

from scope_runtime.lifecycle.build import Bench, Built, build
from scope_runtime.lifecycle.source import Source
from scope_runtime.pickled import dumps, parts
from scope_runtime.policy.revision import FileDigests
from scope_runtime.resolve import OpenFiles

FileList = tuple[tuple[str, str], ...]

LENGTH = struct.Struct("<Q")


class Order(NamedTuple):
    """What to build; and to spare work, which files the policies named, and which arrived before."""

    source: Source
    named: tuple[str, ...]
    has_files: FileList


class Answer(NamedTuple):
    """What came of it; the open files apart, and only where they are others than the order says."""

    built: Built
    files: bytes | None

    def __reduce__(self) -> tuple[object, ...]:
        files = None if self.files is None else pickle.PickleBuffer(self.files)
        return Answer, (self.built, files)


class Packed(NamedTuple):
    """An answer on its way: a pickle, and the lengths of what lies one after the other in the file beside it."""

    body: bytes
    lengths: tuple[int, ...]


def pack(value: object) -> bytes:
    """A message: length, then the pickled value."""
    body = dumps(value)
    return LENGTH.pack(len(body)) + body


def pack_beside(value: object, file: int) -> bytes:
    """A message whose large parts are written into a file."""
    body, apart = parts(value)
    lengths: list[int] = []
    for part in apart:
        with part.raw() as raw:
            lengths.append(_write(file, raw, sum(lengths)))
    return pack(Packed(body, tuple(lengths)))


def _write(file: int, data: memoryview, at: int) -> int:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(file, data[done:], at + done)
    return done


def unpack_beside(packed: Packed, file: int) -> Any:
    """What ``pack_beside`` packed; the file is empty then. Raises EOFError if it holds less than the message says."""
    at, found = 0, []
    for length in packed.lengths:
        found.append(_read_at(file, length, at))
        at += length
    os.ftruncate(file, 0)
    return pickle.loads(packed.body, buffers=found)


def _read_at(file: int, n_bytes: int, at: int) -> bytes:
    data = os.pread(file, n_bytes, at)
    while len(data) < n_bytes:  # one call reads two gigabytes at most
        more = os.pread(file, n_bytes - len(data), at + len(data))
        if not more:
            raise EOFError
        data += more
    return data


def main() -> None:
    """Answers orders until stdin ends, which it does with the parent. Arguments: niceness, the file's descriptor."""
    nice, beside = map(int, sys.argv[1:])
    os.nice(nice)
    orders = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints may get between the answers
    digests = FileDigests()
    files = OpenFiles(digests)
    bench = _read(orders)
    # A collection in the middle of a build would be waited for, one between two builds is not.
    gc.freeze()
    gc.disable()
    while isinstance(bench, Bench):
        order = _read(orders)
        if order is None:
            return
        answers.write(pack_beside(answer(order, bench, digests, files), beside))
        answers.flush()
        gc.collect()


def answer(order: Order, bench: Bench, digests: FileDigests, files: OpenFiles) -> Answer:
    """Builds what the order says. Never raises for what is wrong with the source."""
    built = build(order.source, bench, digests, order.named, files)
    programs = built.programs
    if programs is None or programs.file_digests == order.has_files:
        return Answer(built, None)
    return Answer(built, programs.packed_files())


def _read(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pickle.loads(stream.read(LENGTH.unpack(head)[0]))
