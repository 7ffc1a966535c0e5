"""One hooked context without the engine around it: batches, sequences and memory by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scope_runtime.compile import compile_policy
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.probe import prove
from scope_runtime.policy.load import load_policy
from scope_runtime.program import Program


@contextmanager
def hooked_llama(
    model: Path,
    policy: Path | None = None,
    *,
    n_batch: int = 512,
    n_ubatch: int = 512,
    n_seq_max: int = 1,
) -> Iterator[Context]:
    """A proved context made like `PlainLlama`'s; closed at the end."""
    options = ContextOptions(512, n_batch, n_ubatch, n_seq_max, n_threads=1, use_extra_bufts=False)
    context = Context(model, options)
    try:
        prove(context)
        if policy is not None:
            install(context, policy)
        yield context
    finally:
        context.close()


def install(context: Context, policy: Path) -> Program:
    """Compiles the policy for the context's model and makes it the hook's program."""
    program = compile_policy(load_policy(policy), context.shape)
    context.live_hook.install(program.blob)
    return program
