"""A Runtime as its ``scope.yaml`` asks for it: every section becomes what it configures, here and nowhere else."""

from __future__ import annotations

from contextlib import ExitStack

from scope_runtime.events import Sink
from scope_runtime.lifecycle.config import RuntimeConfig
from scope_runtime.lifecycle.listen import tcp_socket
from scope_runtime.runtime import Runtime


def configured(config: RuntimeConfig) -> Runtime:
    """Opens the model under its policies, with every sink that the configuration names.

    Raises:
        ScopeError: it cannot start; nothing is left open.
    """
    with ExitStack() as undo:
        # Taken before the model is loaded: a port that somebody has need not wait for gigabytes of weights.
        at = None
        if config.metrics is not None:
            at = undo.enter_context(tcp_socket(config.metrics))
        runtime = Runtime(
            config.model,
            config.policy,
            policy_root=config.policy_root,
            watch=config.options,
            state=config.state,
            control=config.control,
            audit=config.audit,
            sinks=_sinks(config),
            n_ctx=config.n_ctx,
            n_threads=config.n_threads,
            n_gpu_layers=config.n_gpu_layers,
        )
        undo.callback(runtime.close)
        runtime.hosted.configured_by(config)
        if at is not None:
            runtime.hosted.serve_metrics(at)
        undo.pop_all()
    return runtime


def _sinks(config: RuntimeConfig) -> list[Sink]:
    """Where events go beside memory and log; each section of the configuration adds its own."""
    return []
