"""What a model computes on tokens under its program: residuals, and what it was about to say after each token."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import HookError
from scope_runtime.llama.capture import check_layers
from scope_runtime.llama.context import Context
from scope_runtime.pack_types import F32Array
from scope_runtime.program import Program

STEP = 128
"""Tokens of a prompt at a time: so many rows of logits are held at once."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token that could come next, and its probability at temperature 1, before any sampling option."""

    token: int
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Some tokens as the model read them.

    Attributes:
        tokens: as they were given.
        n_prompt: how many of them counted as prompt.
        layers: per layer the residual at every token, before the program's change there, (n_tokens, n_embd).
        next: per token the likeliest next ones, the likeliest first.
        program: what they were computed under.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    layers: dict[int, F32Array] = field(repr=False)
    next: tuple[tuple[NextToken, ...], ...] = field(repr=False)
    program: Program = field(repr=False)


def observe(
    context: Context,
    tokens: Sequence[int],
    n_prompt: int,
    layers: Iterable[int],
    n_next: int,
    program: Program,
) -> Observed:
    """Reads tokens as a request does, the prompt in batches and then token by token, and takes down what it sees.

    Args:
        context: with empty memory, a request begun and ``program`` installed.
        tokens: 1 to n_ctx.
        n_prompt: 1 to n_tokens.
        layers: 0-based blocks whose output is wanted, or `EMBEDDING`.
        n_next: how many next tokens to list.

    Raises:
        UsageError: the model has no such layer.
        HookError: residuals did not arrive for every token.
    """
    wanted = check_layers(context, layers)
    hook = context.live_hook
    step = min(STEP, context.options.n_batch, context.options.n_ubatch)
    out = {
        layer: np.full((len(tokens), context.shape.n_embd), np.nan, np.float32) for layer in wanted
    }
    following: list[tuple[NextToken, ...]] = []
    n_seen = 0
    hook.capture(wanted, len(wanted) * step)
    try:
        ends = [*range(0, n_prompt, step), *range(n_prompt, len(tokens) + 1)]
        for start, end in itertools.pairwise(ends):
            # Every token's logits: they are wanted, and without them the last block has no row for a token.
            logits = context.decode(tokens[start:end], start, all_logits=True)
            following += [likeliest(row, n_next) for row in logits]
            rows, h = hook.captured()
            n_seen += len(rows)
            for layer in wanted:
                here = rows[:, 0] == layer
                out[layer][rows[here, 2]] = h[here]
    finally:
        if context.hook is not None:
            context.hook.capture(())
    if n_seen != len(wanted) * len(tokens):
        raise HookError(
            "residuals did not arrive for every token",
            found=f"{n_seen} rows",
            expected=f"{len(wanted)} layers of {len(tokens)}",
        )
    return Observed(tuple(tokens), n_prompt, out, tuple(following), program)


def likeliest(logits: npt.NDArray[np.float32], n: int) -> tuple[NextToken, ...]:
    """The n likeliest tokens of logits (n_vocab,), of equals the one with the lower id first."""
    if n <= 0:
        return ()
    n = min(n, len(logits))
    least = np.partition(logits, len(logits) - n)[len(logits) - n]
    found = np.flatnonzero(logits >= least)
    found = found[np.argsort(-logits[found], kind="stable")][:n]
    shifted = logits.astype(np.float64) - float(logits.max())
    total = float(np.exp(shifted).sum())
    return tuple(NextToken(int(t), float(np.exp(shifted[t])) / total) for t in found)
