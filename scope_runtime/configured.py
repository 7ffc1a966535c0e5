"""A Runtime as its ``scope.yaml`` asks for it: every section becomes what it configures, here and nowhere else."""

from __future__ import annotations

from scope_runtime.events import Sink
from scope_runtime.lifecycle.config import RuntimeConfig
from scope_runtime.runtime import Runtime


def configured(config: RuntimeConfig) -> Runtime:
    """Opens the model under its policies, with every sink that the configuration names.

    Raises:
        ScopeError: it cannot start; nothing is left open.
    """
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
    runtime.hosted.configured_by(config)
    return runtime


def _sinks(config: RuntimeConfig) -> list[Sink]:
    """Where events go beside memory and log; each section of the configuration adds its own."""
    return []
