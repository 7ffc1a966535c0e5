"""Residuals of texts, taken from llama.cpp itself while it reads them: no PyTorch, and no Python inside a decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scope_runtime.errors import HookError, UsageError
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.probe import prove
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.policy.model import EMBEDDING

N_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class TextResiduals:
    """One text's residuals.

    Attributes:
        tokens: its token ids.
        layers: per wanted layer the residual at every token, before any change, (n_tokens, n_embd).
        n_prompt: how many of the tokens are prompt, the rest is an answer; None: not known.
    """

    tokens: tuple[int, ...]
    layers: dict[int, F32Array]
    n_prompt: int | None = None


@contextmanager
def capturing(
    model: str | Path,
    *,
    n_ctx: int = 512,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    use_extra_bufts: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Context]:
    """A proved context for reading texts; closed at the end.

    Raises:
        ModelError: the model cannot be loaded.
        HookError: the hook does not see this model's residuals.
    """
    options = ContextOptions(
        n_ctx=n_ctx,
        n_batch=min(N_BATCH, n_ctx),
        n_ubatch=min(N_BATCH, n_ctx),
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        use_extra_bufts=use_extra_bufts,
    )
    context = Context(model, options, progress=progress)
    try:
        prove(context)
        yield context
    finally:
        context.close()


def windows(tokens: Sequence[int], n_ctx: int) -> list[list[int]]:
    """A long text in pieces that fit the context, each read as a text of its own."""
    return [list(tokens[start : start + n_ctx]) for start in range(0, len(tokens), n_ctx)]


def check_layers(context: Context, layers: Iterable[int]) -> tuple[int, ...]:
    """The layers, ascending, each once. Raises UsageError if the model has no such hook point."""
    wanted = tuple(sorted(set(layers)))
    n_layer = context.shape.n_layer
    stray = [layer for layer in wanted if not EMBEDDING <= layer < n_layer]
    if stray or not wanted:
        raise UsageError(
            "the model has no such layer" if stray else "no layer is asked for",
            found=", ".join(map(layer_name, stray)) or None,
            expected=f"0 to {n_layer - 1}",
        )
    return wanted


def residuals(
    context: Context, texts: Iterable[str | Sequence[int]], layers: Iterable[int]
) -> Iterator[TextResiduals]:
    """Reads texts one after the other, each on empty memory, and gives their residuals.

    Args:
        context: proved (`capturing`, or a context after `prove`), without a program that changes anything.
        texts: text, or token ids; each at most n_ctx tokens (`windows` cuts). An empty one is passed over.
        layers: 0-based blocks whose output is wanted, or `EMBEDDING`.

    Raises:
        UsageError: a text is too long, or the model has no such layer.
        HookError: residuals did not arrive for every token.
    """
    wanted = check_layers(context, layers)
    hook = context.live_hook
    step = min(context.options.n_batch, context.options.n_ubatch)
    # The last block has rows for the wanted outputs alone, so all must be wanted.
    all_outputs = wanted[-1] == context.shape.n_layer - 1
    hook.capture(wanted, len(wanted) * step)
    try:
        for text in texts:
            tokens = context.tokenize(text, special=False) if isinstance(text, str) else list(text)
            if len(tokens) > context.n_ctx:
                raise UsageError(
                    "a text is longer than the context",
                    found=f"{len(tokens)} tokens",
                    expected=f"at most {context.n_ctx}",
                )
            if tokens:
                yield _read(context, tokens, wanted, step, all_outputs)
    finally:
        if context.hook is not None:
            context.hook.capture(())


def _read(
    context: Context, tokens: list[int], wanted: tuple[int, ...], step: int, all_outputs: bool
) -> TextResiduals:
    shape = (len(tokens), context.shape.n_embd)
    out = {layer: np.full(shape, np.nan, np.float32) for layer in wanted}
    context.forget()
    n_seen = 0
    try:
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            context.decode(part, start, all_logits=all_outputs)
            rows, h = context.live_hook.captured()
            n_seen += len(rows)
            for layer in wanted:
                here = rows[:, 0] == layer
                out[layer][rows[here, 2]] = h[here]
    finally:
        context.forget()
    if n_seen != len(wanted) * len(tokens):
        raise HookError(
            "residuals did not arrive for every token",
            found=f"{n_seen} rows",
            expected=f"{len(wanted)} layers of {len(tokens)}",
        )
    return TextResiduals(tuple(tokens), out)
