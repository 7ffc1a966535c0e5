"""A lifecycle without a model and without a second process: what it swaps goes into a hook of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scope_runtime.events import Event, Kind
from scope_runtime.lifecycle.build import Bench, Built, build
from scope_runtime.lifecycle.source import Source
from scope_runtime.native.hook import Hook
from scope_runtime.policy.revision import FileDigests
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape


class InProcess:
    """Builds here and now: as the worker does, but without starting one."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._digests = FileDigests()

    def build(self, source: Source, named: tuple[str, ...] = ()) -> Built:
        return build(source, self._bench, self._digests, named)

    def close(self) -> None:
        pass


class HookTarget:
    """Takes programs up into a native hook, and can say which one the hook runs tokens under.

    Attributes:
        recorded: what was put on record, in order.
    """

    audit = None

    def __init__(self, shape: ModelShape) -> None:
        self._hook = Hook(shape.n_embd, shape.n_layer)
        self._revisions: dict[int, str] = {}
        self.recorded: list[tuple[str, Mapping[str, Any]]] = []
        self.take_up(ProgramSource(None, shape), what="begin")

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None:
        serial = self._hook.install(source.program.blob)
        self._revisions[serial] = source.revision
        self.recorded.append((what, {"revision": source.revision, **detail}))

    def record(self, what: str, kind: Kind, **detail: object) -> None:
        self.recorded.append((what, detail))

    def events(self) -> tuple[Event, ...]:
        return ()

    @property
    def acknowledged(self) -> bool:
        return self._hook.acknowledged in self._revisions

    def runs(self) -> str:
        """The revision that a token is computed under, as the hook acknowledges it after one."""
        self._hook.request_begin(0, 1, 1)
        self._hook.columns(range(1), range(1))
        self._hook.residual(1, np.ones((1, self._hook.n_embd), np.float32))
        self._hook.end_ubatch()
        self._hook.request_end(0)
        self._hook.drain()
        return self._revisions[self._hook.acknowledged]

    def close(self) -> None:
        self._hook.close()
