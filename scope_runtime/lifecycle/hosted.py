"""Policies that a Runtime follows: the lifecycle, the thread that follows, the control socket, as one thing."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.errors import UsageError
from scope_runtime.lifecycle.address import Address
from scope_runtime.lifecycle.build import Bench
from scope_runtime.lifecycle.config import RuntimeConfig, load_config
from scope_runtime.lifecycle.feed import BundleFeed, FeedFollower
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.lock import StateLock
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.state import State
from scope_runtime.lifecycle.types import BundleOptions, Options, Prepared, Target
from scope_runtime.metrics import Metrics
from scope_runtime.metrics.collect import lifecycle_reader
from scope_runtime.signals import SIGNALS, take_signals

if TYPE_CHECKING:
    from scope_runtime.lifecycle.listen import Served


class Hosted:
    """A lifecycle with everything that runs beside it.

    Args:
        metrics: of the target; the lifecycle's own join them.
        source: what is followed, or where bundles of it come from, which needs ``state``.
        state: directory where what was in force outlives the process; None forgets it.
        control: Unix socket to serve the control channel at; None serves none.

    Attributes:
        bench: what programs are compiled for and tried on.

    Raises:
        ScopeError: it cannot start.
    """

    def __init__(
        self,
        target: Target,
        source: Source | BundleOptions,
        bench: Bench,
        options: Options,
        metrics: Metrics,
        *,
        state: Path | None = None,
        control: Path | None = None,
    ) -> None:
        self.bench = bench
        kept = State(state, keep=options.keep) if state is not None else None
        self._lock = StateLock(state) if state is not None else None
        feed = None
        try:
            if isinstance(source, BundleOptions):
                if state is None:
                    raise UsageError("bundles need a state directory", expected="state=DIRECTORY")
                feed = BundleFeed(source, state / "bundles")
                source = Source(feed.folder / "none", feed.folder)
            self.lifecycle = Lifecycle(target, source, bench, kept, options, feed=feed)
        except BaseException:
            self._unlock()
            raise
        self._feeding = FeedFollower(self.lifecycle, feed) if feed is not None else None
        self.follower = Follower(self.lifecycle, events=options.events)
        self.metrics = metrics
        self.metrics.read(lifecycle_reader(self.lifecycle))
        self._served: list[Served] = []
        self._metrics_address: Address | None = None
        try:
            self.lifecycle.start()
            self.follower.start()
            if self._feeding is not None:
                self._feeding.start()
            if control is not None:
                # The web server is imported by those who want one.
                from scope_runtime.lifecycle.control import ControlServer

                registry = self.metrics.registry
                self._serve(ControlServer(control, self.lifecycle, self.follower, registry))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops answering, following and compiling, in this order."""
        for served in self._served:
            served.close()
        self.lifecycle.close()
        if self._feeding is not None:
            self._feeding.close()
        self.follower.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _serve(self, server: Served) -> None:
        self._served.append(server)
        server.start()

    def serve_metrics(self, at: socket.socket) -> None:
        """Serves ``/metrics``, ``/health`` and ``/ready``, and nothing else, at this socket until the end."""
        from scope_runtime.lifecycle.listen import Served
        from scope_runtime.lifecycle.probes import probes_app

        app = probes_app(self.lifecycle, self.metrics.registry)
        server = Served(app, at, "scope-metrics")
        self._metrics_address = server.address
        self._serve(server)

    @property
    def metrics_address(self) -> Address:
        """Where it does; raises UsageError where it does not."""
        if self._metrics_address is None:
            raise UsageError("metrics are not served over TCP", hint="Set spec.metrics.listen")
        return self._metrics_address

    def configured_by(
        self, config: RuntimeConfig, take_up: Callable[[RuntimeConfig], None] = lambda new: None
    ) -> None:
        """Reads the configuration again at each reload: what a reload can take up is taken up, the rest is told.

        Args:
            take_up: called with it for what lies elsewhere, once the policies are sound; what it raises refuses the
                reload.
        """

        def read_again() -> Prepared:
            new = load_config(config.file)
            keys = ", ".join(config.changed_for_restart(new))
            note = f"{config.file}: {keys}: a restart is needed" if keys else None
            return Prepared(lambda: commit(new), note)

        def commit(new: RuntimeConfig) -> None:
            take_up(new)
            self.lifecycle.options = replace(
                self.lifecycle.options,
                poll_s=new.options.poll_s,
                debounce_ms=new.options.debounce_ms,
                keep=new.options.keep,
            )
            if self.lifecycle.state is not None:
                self.lifecycle.state.keep = new.options.keep

        self.lifecycle.before_reload = read_again

    def handle_signals(self) -> None:
        """SIGHUP reloads, SIGUSR1 switches off, SIGUSR2 on. For the main thread of a process that is ours.

        Raises:
            UsageError: called from another thread.
        """
        try:
            for number in SIGNALS:
                signal.signal(number, self.follower.on_signal)
        except ValueError:
            raise UsageError("signals can be handled by the main thread alone") from None
        take_signals()
