"""The other end of the worker's pipes."""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import scope_runtime
from scope_runtime.errors import CompileError, Location
from scope_runtime.lifecycle.build import Bench, Built
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.worker import (
    LENGTH,
    Answer,
    FileList,
    Order,
    Packed,
    pack,
    unpack_beside,
)
from scope_runtime.pickled import dumps
from scope_runtime.resolve import Artefacts

_READ_BYTES = 1 << 16
_PROGRAM = "from scope_runtime.lifecycle.worker import main; main()"


class Compiler:
    """Builds sources in a process of its own; one at a time. A worker that dies is replaced.

    Args:
        bench: what programs are compiled for; sent once.
        nice: added to the worker's niceness, 0 to 19.
        limit_s: how long one build may take before the worker is ended.
    """

    def __init__(self, bench: Bench, *, nice: int = 10, limit_s: float = 120.0) -> None:
        self._bench = bench
        self._nice = nice
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._file_list: FileList = ()
        self._files = dumps(Artefacts())
        self._beside = os.memfd_create("scope-answer")
        with self._lock:
            self._start()

    def build(self, source: Source, named: tuple[str, ...] = ()) -> Built:
        """Builds a source. Raises CompileError if the worker died of it or did not answer in time."""
        with self._lock:
            if self._closed:
                raise CompileError("the compiler is closed", location=Location(str(source.path)))
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                self._send(Order(source, named, self._file_list))
                answer = self._receive()
            except TimeoutError as reason:
                self._end(now=True)
                raise CompileError(
                    "compiling took too long and was ended",
                    location=Location(str(source.path)),
                    found=str(reason),
                ) from None
            except (OSError, EOFError, pickle.UnpicklingError) as reason:
                code = self._end()
                raise CompileError(
                    "compiling failed: its process ended",
                    location=Location(str(source.path)),
                    found=f"exit status {code}" if code else str(reason) or "no answer",
                ) from None
        if not isinstance(answer, Answer):
            raise RuntimeError(f"the compiler answered with {type(answer)}")
        self._keep_files(answer)
        return answer.built

    def _keep_files(self, answer: Answer) -> None:
        """Gives programs their packs and vectors, which cross the pipe only when they are others than before."""
        programs = answer.built.programs
        if programs is None:
            return
        if answer.files is not None:
            self._file_list, self._files = programs.file_digests, answer.files
        programs.take_files(self._files)

    def close(self) -> None:
        """Ends the worker, also in the middle of a build. Safe to call twice."""
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
        with self._lock:
            self._end()
            if self._beside >= 0:
                os.close(self._beside)
                self._beside = -1

    def _start(self) -> None:
        self._end()
        # The package as it is imported here, installed or not; the rest is found as we find it.
        places = [str(Path(scope_runtime.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self._nice), str(self._beside)],
            pass_fds=(self._beside,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Away from the terminal's signals: an interrupt is for us, and we end the worker.
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, places)),
                "PYTHONSAFEPATH": "1",  # no module is taken from the folder we happen to stand in
            },
        )
        self._send(self._bench)

    def _end(self, *, now: bool = False) -> int | None:
        """Ends what is left of the worker and returns its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(
                0 if now else 0.5
            )  # one that is dying has a status of its own, which says why
        except subprocess.TimeoutExpired:
            process.kill()
        if process.stdout is not None:
            process.stdout.close()
        return process.wait()

    def _send(self, value: object) -> None:
        stream = self._process.stdin if self._process else None
        if stream is None:
            raise EOFError
        data = memoryview(pack(value))
        while data:
            data = data[stream.write(data) or 0 :]

    def _receive(self) -> Any:
        deadline = time.monotonic() + self._limit_s
        length = LENGTH.unpack(self._read(LENGTH.size, deadline))[0]
        packed = pickle.loads(self._read(length, deadline))
        return unpack_beside(packed, self._beside) if isinstance(packed, Packed) else packed

    def _read(self, n_bytes: int, deadline: float) -> bytes:
        stream = self._process.stdout if self._process else None
        if stream is None:
            raise EOFError
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while len(data) < n_bytes:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError(f"no answer in {self._limit_s:g} s")
                part = stream.read(min(_READ_BYTES, n_bytes - len(data)))
                if not part:
                    raise EOFError
                data += part
        return bytes(data)
