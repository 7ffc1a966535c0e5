"""The control channel's routes on a listener of their own, for keys of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from scope_runtime.console.page import Page
from scope_runtime.console.routes import add_console
from scope_runtime.console.steering import add_steering
from scope_runtime.lifecycle.control import control_app
from scope_runtime.lifecycle.hosted import Hosted
from scope_runtime.lifecycle.types import Cause, Prepared
from scope_runtime.metrics.collect import queue_reader
from scope_runtime.serve.errors import ApiError, JsonResponse
from scope_runtime.serve.gate import Gate
from scope_runtime.serve.gateway import ANYBODY, Gateway
from scope_runtime.serve.keys import Holder, KeyRing
from scope_runtime.serve.notify import Supervisor
from scope_runtime.signals import OFF, ON, RELOAD, take_signals


@dataclass(frozen=True, slots=True)
class Control:
    """The policies that an engine follows, as the gateway controls them."""

    hosted: Hosted

    @classmethod
    def of(cls, hosted: Hosted, keys: KeyRing) -> Control:
        """Every reload, whoever asks for it, reads the keys again: all of it is taken up, or nothing."""
        before = hosted.lifecycle.before_reload

        def with_keys() -> Prepared:
            others, take_up = before(), keys.read()

            def commit() -> None:
                others.commit()
                take_up()

            return Prepared(commit, others.note)

        hosted.lifecycle.before_reload = with_keys
        return cls(hosted)

    def stale(self) -> str | None:
        """Why what lies on disk is not what is in force; None when it is."""
        last = self.hosted.lifecycle.last
        return None if last is None or last.error is None else "policies are stale"

    def unrecorded(self) -> str | None:
        """Why no request can be put on record; None when it can, or goes on without (``on_failure: drop``)."""
        log = self.hosted.lifecycle.audit
        return None if log is None or log.status.serving else "the audit log cannot be written"

    def told(self) -> str:
        """How the latest reload ended, in a line."""
        lifecycle = self.hosted.lifecycle
        last = lifecycle.last
        if last is None or last.error is None:
            return f"in force: {lifecycle.revision}"
        return f"the latest reload was refused: {last.error}"

    def app(self, gateway: Gateway) -> ASGIApp:
        """The control channel's routes, and the console's."""
        hosted = self.hosted
        app = control_app(hosted.lifecycle, hosted.follower, hosted.metrics.registry)
        add_console(app, hosted.lifecycle)
        add_steering(app, hosted, gateway)
        return app

    def count(self, gateway: Gateway) -> None:
        """Has the metrics tell of the requests that wait in the gateway."""
        self.hosted.metrics.read(queue_reader(lambda: gateway.n_waiting))

    def handle_signals(self, loop: asyncio.AbstractEventLoop, supervisor: Supervisor) -> None:
        """SIGHUP reloads, SIGUSR1 switches off, SIGUSR2 on.

        Args:
            supervisor: told that a reload begins, and what came of it.
        """
        follower = self.hosted.follower

        def reload(cause: Cause) -> None:
            supervisor.reloading()
            follower.ask_reload(cause, lambda: supervisor.ready(self.told()))

        for number, ask in (
            (RELOAD, reload),
            (OFF, follower.ask_off),
            (ON, follower.ask_on),
        ):
            loop.add_signal_handler(number, ask, Cause("signal", number.name))
        take_signals()


def admin_app(gateway: Gateway, control: Callable[[], Control | None], *, keyless: bool) -> ASGIApp:
    """What operators reach.

    Args:
        control: once the engine is there.
        keyless: the socket's mode lets nobody else in, so nobody is asked for a key.
    """
    keys = gateway.keys

    def holder(key: str | None) -> Holder | None:
        if keyless:
            return ANYBODY
        return keys.holder(key, admin=True) if key is not None else None

    options = gateway.options
    app = _Switch(gateway, control)
    gate = Gate(app, holder, options.max_body_bytes, options.receive_s)
    return Page(gate, keyless=keyless)


class _Switch:
    """The routes once they are there; ``/health`` and ``/ready`` at any time."""

    def __init__(self, gateway: Gateway, control: Callable[[], Control | None]) -> None:
        self._gateway = gateway
        self._control = control
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = self._gateway.not_ready()
        if scope["path"] == "/ready":
            response = JsonResponse(
                {"ready": why is None, "reason": why}, status_code=200 if why is None else 503
            )
            await response(scope, receive, send)
            return
        if scope["path"] == "/health":
            await JsonResponse({"status": "alive"})(scope, receive, send)
            return
        control = self._control()
        if control is None:
            error = ApiError(
                503, f"The server is {why}.", code=str(self._gateway.phase), retry_after_s=5
            )
            await error.response()(scope, receive, send)
            return
        if self._app is None:
            self._app = control.app(self._gateway)
        await self._app(scope, receive, send)
