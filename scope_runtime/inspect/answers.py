"""What a model answers, and where in an answer a behaviour begins."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scope_runtime.errors import UsageError
from scope_runtime.inspect.reading import decoded
from scope_runtime.pack_types import F32Array

if TYPE_CHECKING:
    from scope_runtime.files import Progress
    from scope_runtime.llama.context import Context


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and its answer, as tokens; the answer is those from ``n_prompt`` on, perhaps none."""

    tokens: list[int]
    n_prompt: int


def continued(
    context: Context, start: Sequence[int], n: int, choose: Callable[[F32Array], int]
) -> list[int]:
    """A start and at most n tokens after it, up to the one that would end the text or the context's end.

    Args:
        context: from `capturing`.
        start: one token or more.
        n: 0 or more.
        choose: the next token, from logits (n_vocab,).

    Raises:
        UsageError: the start fills the context.
    """
    tokens = list(start)
    if len(tokens) > context.n_ctx:
        raise UsageError(
            "a text is longer than the context",
            found=f"{len(tokens)} tokens",
            expected=f"at most {context.n_ctx}",
        )
    longest = min(len(tokens) + n, context.n_ctx)
    context.forget()
    try:
        unread = tokens
        while len(tokens) < longest:
            token = choose(context.decode(unread, len(tokens) - len(unread)))
            if context.ends(token):
                break
            tokens = [*tokens, token]
            unread = [token]
    finally:
        context.forget()
    return tokens


def answers(
    context: Context, prompts: Sequence[Sequence[int]], n: int, progress: Progress | None = None
) -> Iterator[Answered]:
    """Prompts with the model's greedy answers of at most n tokens. Raises as `continued`."""
    for number, prompt in enumerate(prompts, 1):
        yield Answered(continued(context, prompt, n, lambda row: int(row.argmax())), len(prompt))
        if progress:
            progress(number, len(prompts))


def pattern_of(text: str) -> re.Pattern[str]:
    """A regular expression. Raises UsageError where it is none."""
    try:
        return re.compile(text)
    except re.error as reason:
        raise UsageError("no regular expression", found=repr(text), expected=str(reason)) from None


def before(context: Context, text: Answered, behaviour: re.Pattern[str]) -> Answered | None:
    """The text up to the token that chooses the behaviour's first one; None where the answer does not show it."""
    pieces = decoded(context.piece(token) for token in text.tokens[text.n_prompt :])
    match = behaviour.search("".join(pieces))
    if match is None:
        return None
    ends = list(itertools.accumulate(map(len, pieces)))
    first = next((i for i, end in enumerate(ends) if end > match.start()), len(pieces))
    # A character belongs to the token that completes it; it begins with the first that has a part of it.
    while first and not pieces[first - 1]:
        first -= 1
    return replace(text, tokens=text.tokens[: text.n_prompt + first])


def alike(text: Answered, other: Answered) -> Answered:
    """A text cut where it is most like another: after the same last token, as near as may be to the same place.

    Without that token it is cut at the same place.
    """
    n = len(other.tokens) - other.n_prompt
    end, given = other.tokens[-1], text.n_prompt
    at = [i - given + 1 for i in range(given, len(text.tokens)) if text.tokens[i] == end]
    length = min(at, key=lambda i: abs(i - n)) if n and at else n
    return replace(text, tokens=text.tokens[: given + length])
