"""Reading texts where another process serves the model: a context of our own, only while somebody reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.errors import Location, ModelError, UsageError
from scope_runtime.llama.checks import ModelInfo, check_model
from scope_runtime.llama.room import DEFAULT_CTX, context_tokens
from scope_runtime.select import ProgramSource
from scope_runtime.serve.ask import Reads

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader
    from scope_runtime.runtime import Runtime

IDLE_S = 300.0
"""After so long without a text to read, the memory is given back."""
_MIB = 2**20
_OTHERWISE = "what the model file itself computes is not what its answers come from"


class Beside:
    """A second context of a model's file, opened when a text is read and closed when none was for a while.

    The weights are mapped, which takes no memory beyond what a server takes that maps them too; the
    context is as small as the embedded engine's. Any thread may call; one reads at a time.

    Args:
        command: of the server.
        digest: the model's; a file that has become another one is not read.
        source: what is in force.
        opened: opens the model; for tests.
        idle_s: see ``IDLE_S``.
    """

    def __init__(
        self,
        command: ServerCommand,
        digest: str,
        source: Callable[[], ProgramSource],
        *,
        opened: Callable[[Path], Runtime] | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._command, self._model = command, command.model
        self._digest, self._source = digest, source
        self._open = opened or _opened
        self._idle_s = idle_s
        self._lock = threading.Lock()  # of all below, and of the context while it reads
        self._runtime: Runtime | None = None
        self._timer: threading.Timer | None = None
        self._n_readings = 0
        self._closed = False

    @cached_property
    def reads(self) -> Reads:
        """See ``Engine.reads``. Raises ModelError."""
        changed = self._command.changes_model
        if changed is not None:
            return Reads(
                self._model, why_not=f"llama-server was started with {changed}: {_OTHERWISE}."
            )
        return Reads(self._model, _words(check_model(self._model)))

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Reads under what is in force.

        Raises:
            ScopeError: ``reads`` says why not; the model cannot be opened here, there is no memory for it, or its file
                has changed.
        """
        from scope_runtime.inspect.reader import Reader

        if self.reads.why_not is not None:
            raise UsageError(self.reads.why_not.rstrip("."))

        with self._lock:
            if self._closed:
                raise UsageError("this process is ending")
            runtime = self._runtime or self._open(self._model)
            self._runtime = runtime
            self._n_readings += 1
            try:
                if runtime.model_digest != self._digest:
                    raise ModelError(
                        "this is not the file any more that llama-server loaded",
                        location=Location(str(self._model)),
                        found=runtime.model_digest,
                        expected=self._digest,
                    )
                runtime.take_up(self._source())
                yield Reader.of(runtime)
            finally:
                self._watch_idle()

    def _watch_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._idle_s, self._end_idle, (self._n_readings,))
        self._timer.name, self._timer.daemon = "scope-idle-reader", True
        self._timer.start()

    def _end_idle(self, n_readings: int) -> None:
        with self._lock:
            # A reading that began while this waited is followed by a timer of its own.
            if self._n_readings == n_readings:
                self._free()

    def _free(self) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def close(self) -> None:
        """Waits for what is read, then gives everything back. Safe to call twice."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._free()


def _opened(model: Path) -> Runtime:
    from scope_runtime.llama.ggml import default_threads
    from scope_runtime.runtime import Runtime

    # Half the CPUs: answers go on meanwhile. Repacked weights would be a copy.
    threads = max(1, default_threads() // 2)
    return Runtime(model, n_threads=threads, use_extra_bufts=False)


def _words(info: ModelInfo) -> str:
    return (
        "Read in a second context of the same file, in the gateway's process, while llama-server goes on. It is opened "
        f"for the first text and closed when none was read for {IDLE_S / 60:g} minutes. "
        f"It takes {_cost(info)}, and half of the CPUs while it reads."
    )


def _cost(info: ModelInfo) -> str:
    tokens = min(context_tokens(info, None), DEFAULT_CTX)
    weights = f"its weights' {_mib(info.file_bytes)} are mapped, once for both where llama-server maps them too"
    if info.kv_bytes is None:
        return f"memory for {tokens:,} tokens of context ({weights})"
    return f"{_mib(info.kv_bytes * tokens)} for {tokens:,} tokens of context ({weights})"


def _mib(n_bytes: int) -> str:
    return f"{max(1, round(n_bytes / _MIB)):,} MiB"
