"""A llama-server under one set of policies for every request, as a control vector that it is started with.

For servers into which no hook can come. Other policies are another server: what runs may end first, what comes waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.attached.interface import Steering
from scope_runtime.attached.link import Link, Request
from scope_runtime.attached.runtime import AttachedRuntime
from scope_runtime.attached.server import Attached
from scope_runtime.attached.vector_hook import (
    BY_CONSTRUCTION,
    StartedWith,
    VectorHook,
    VectorSteering,
)
from scope_runtime.errors import HookError, UsageError
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource

if TYPE_CHECKING:
    from scope_runtime.lifecycle.build import Bench
    from scope_runtime.lifecycle.manager import Lifecycle

_CHANGES = "the server is started again under other policies"
_OFF = "steering is switched off meanwhile"


class VectorRuntime(AttachedRuntime):
    """See ``AttachedRuntime``; ``drain_s`` bounds what a reload waits for."""

    def _steered_by(self, folder: Path) -> Steering:
        self._steering = VectorSteering(folder, lambda: self._source.program)
        self._model_version = self.command.model_version
        self._turn = threading.Lock()  # one change of policies at a time
        self._gate = (
            threading.Condition()
        )  # of what follows, and told when the link or what runs on it changes
        self._shut = False  # requests wait
        self._off_waits = False
        self._ending = False
        self._failure: Exception | None = None  # of the latest start
        return self._steering

    def _bench(self) -> Bench:
        from scope_runtime.lifecycle.build import Bench

        return Bench(self.shape, frozenset(range(self.shape.n_layer)), vectors_alone=True)

    def _follows(self, lifecycle: Lifecycle) -> None:
        lifecycle.before_off = self._before_off
        lifecycle.effect = BY_CONSTRUCTION

    def _told_of_effect(self) -> Mapping[str, str]:
        return {"effect": BY_CONSTRUCTION}

    def compiled(self, policies: Sequence[Policy]) -> ProgramSource:
        """Refused: a trial is for one request, and the control vector for all."""
        raise UsageError(
            "policies cannot be tried on one request here: the server has one control vector for all",
            hint="Try them with the hook, or with the embedded engine",
        )

    @property
    def acknowledged(self) -> bool:
        link = self._link
        return link is not None and _hook(link).n_ended > 0

    @property
    def n_slots(self) -> int:
        """See ``AttachedRuntime``; waits for a server that is started again already."""
        with self._gate:
            self._gate.wait_for(lambda: self._link is not None or self._failure or self._ending)
        return super().n_slots

    # -- other policies

    def take_up(
        self, source: ProgramSource, *, what: str = "swapped", now: bool = False, **detail: object
    ) -> None:
        """Starts the server again under other policies; returns when it is there.

        With ``now`` what runs is ended at once, else after ``drain_s``. A switch to nothing does not wait for the
        server: without the old one nothing is steered any more.

        Raises:
            ScopeError: the server did not start so; the policies from before are in force, on a server of their own.
        """
        with self._turn:
            with self._gate:
                self._off_waits = False
            with self._changing:
                previous, link = self._source, self._link
                changes = StartedWith.of(source.program) != StartedWith.of(previous.program)
                if link is None or not changes:
                    # The next server is started with them.
                    super().take_up(source, what=what, now=now, **detail)
                    return
            self._check_startable(source)
            began = time.perf_counter()
            with self._gate:
                self._shut, self._trouble = not self._ending, _CHANGES
                if not now:
                    self._gate.wait_for(
                        lambda: (
                            not link.running
                            or self._link is not link
                            or self._off_waits
                            or self._ending
                        ),
                        self._drain_s,
                    )
                if self._off_waits:
                    raise HookError(_OFF)
            self._replace(source)
            if not now or source.program.control_vectors:
                self._wait_there(source, previous)
            took_ms = (time.perf_counter() - began) * 1e3
            self._records.taken_up(
                source, previous.revision, what=what, swap_ms=took_ms, hook_swap_ms=0.0, **detail
            )

    def _check_startable(self, source: ProgramSource) -> None:
        """What would keep the server from starting is found before the one that runs is ended."""
        if self.command.model_version != self._model_version:
            raise HookError(
                "the model's file is another one than when the gateway started, so the server cannot be started again",
                found=str(self.command.model),
                hint="Start the gateway again",
            )
        self._steering.write(source.program)

    def _replace(self, source: ProgramSource) -> None:
        """Ends the server, of which no token goes out any more, and has the next one started under ``source``."""
        with self._gate:
            self._failure = None
        with self._changing:
            self._source, link = source, self._link
        self._end_link(link)

    def _end_link(self, link: Link | None) -> None:
        if link is not None:
            _hook(link).stop()
            self._supervisor.restart(link.server)

    def _wait_there(self, source: ProgramSource, previous: ProgramSource) -> None:
        """Until a server runs under ``source``; else the policies from before are put back."""
        why = self._settled()
        if why is None:
            return
        with self._changing:
            self._source = previous
        with self._gate:
            self._failure = None
            self._shut = not self._ending
        self._settled()
        raise HookError(
            "llama-server was not started under the new policies; those before stay",
            found=why,
        )

    def _settled(self) -> str | None:
        """Waits for what becomes of a start; why there is no server under what is in force, or None."""

        def there() -> bool:
            link = self._link
            return link is not None and _hook(link).started_with == StartedWith.of(
                self._source.program
            )

        with self._gate:
            self._gate.wait_for(lambda: there() or self._failure or self._off_waits or self._ending)
            if there():
                return None
            if self._failure is not None:
                return str(self._failure)
            return "the gateway is ending" if self._ending else _OFF

    def _before_off(self) -> None:
        """Whoever switches off does not wait for a change under way: it is given up, with all that runs."""
        with self._gate:
            if not self._turn.locked():
                return
            self._off_waits = True
            self._gate.notify_all()
        self._end_link(self._link)

    # -- told by the supervisor

    def came(self, server: Attached) -> None:
        """See ``AttachedRuntime``; one that was started before the policies changed is ended again."""
        with self._changing:
            hook = server.hook
            current = StartedWith.of(self._source.program)
            if not isinstance(hook, VectorHook) or hook.started_with != current:
                self._say("llama-server is started again: the policies changed meanwhile")
                server.process.kill()
                return
            super().came(server)
        with self._gate:
            self._shut, self._failure = False, None
            self._gate.notify_all()

    def gone(self, server: Attached, how: str) -> None:
        with self._changing:
            unused = self._link is None and not self._closing.is_set()
        super().gone(server, how)
        if unused:
            server.close()
        with self._gate:
            self._gate.notify_all()

    def failed(self, error: Exception) -> None:
        super().failed(error)
        with self._gate:
            self._shut, self._failure = False, error
            self._gate.notify_all()

    def end_server(self) -> None:
        self._end()
        super().end_server()

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        """Nobody waits for a server any more: there will be none."""
        with self._gate:
            self._shut, self._ending = False, True
            self._gate.notify_all()

    # -- requests

    def begin(
        self,
        slot: int,
        labels: Mapping[str, str],
        request_id: str,
        sampling: Sampling,
        timing: Timing,
        trial: ProgramSource | None = None,
    ) -> Request:
        """See ``AttachedRuntime``. While the server is started again under other policies it waits for that."""
        with self._gate:
            self._gate.wait_for(lambda: not self._shut)
            request = super().begin(slot, labels, request_id, sampling, timing, trial)
            if StartedWith.of(request.program) != _hook(request.link).started_with:
                request.link.end(request)
                request.link.forget(request)
                raise HookError("the server was not started with what the request is to run under")
            return request

    def _forget(self, request: Request) -> None:
        try:
            super()._forget(request)
        finally:
            with self._gate:
                self._gate.notify_all()


def _hook(link: Link) -> VectorHook:
    hook = link.hook
    if not isinstance(hook, VectorHook):
        raise TypeError(f"not started with a control vector: {hook!r}")
    return hook
