"""The process in which policies are compiled, at low priority, so that no token waits for it.

It is a process and not a thread because compiling holds Python's interpreter lock, and because a crash in it must
not be a crash of the model. Orders come on stdin, answers go to stdout: eight bytes of length, then a pickle. Both
ends are the same program of the same user; nothing else can write to these pipes.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import Any, BinaryIO

from scope_runtime.lifecycle.build import Bench, Built, build
from scope_runtime.lifecycle.source import Source
from scope_runtime.pickled import dumps
from scope_runtime.policy.revision import FileDigests

LENGTH = struct.Struct("<Q")


def pack(value: object) -> bytes:
    """A message: length, then the pickled value."""
    body = dumps(value)
    return LENGTH.pack(len(body)) + body


def main() -> None:
    """Answers orders until stdin ends, which it does with the parent."""
    os.nice(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    orders = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that prints may get between the answers
    digests = FileDigests()
    bench = _read(orders)
    while isinstance(bench, Bench):
        order = _read(orders)
        if order is None:
            return
        answers.write(pack(_answer(order, bench, digests)))
        answers.flush()


def _answer(order: tuple[Source, tuple[str, ...]], bench: Bench, digests: FileDigests) -> Built:
    source, named = order
    return build(source, bench, digests, named)


def _read(stream: BinaryIO) -> Any:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return pickle.loads(stream.read(LENGTH.unpack(head)[0]))
