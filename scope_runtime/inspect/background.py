"""What a model says when nobody asks: what a few texts are held against where no others are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.answers import continued
from scope_runtime.llama.chat import ChatTemplate
from scope_runtime.pack_types import F32Array

if TYPE_CHECKING:
    from scope_runtime.files import Progress
    from scope_runtime.llama.context import Context

N_TEXTS = 40
LONGEST_QUESTION = 96
_TRIES = 8
_PLACE = "a question"

Parted = tuple[Sequence[int], Sequence[int]]
"""A text's tokens, parted where its answer begins; a plain text is all prompt."""


def own_texts(
    context: Context,
    like: Sequence[Parted],
    *,
    chat: bool,
    n: int = N_TEXTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[list[int]]:
    """Texts that the model makes up, drawn at temperature 1, in the shape of those given.

    Of conversations it makes up the question as well, and answers where the given one has an answer; a plain text
    begins as the model begins every text. An answer, or a plain text, ends where it last says the token that the
    given one ends with, if it says it: what is about to happen at a full stop is held against full stops.

    Args:
        context: from `capturing`.
        like: the texts that are given; number i is the shape of own text i, over and over.
        chat: whether they are conversations.
        n: texts to make.
        seed: of the draws.

    Raises:
        UsageError: the model makes up no question.
        ModelError: conversations are wanted and the model has no template.
    """
    rng = np.random.default_rng(seed)

    def draw(logits: F32Array) -> int:
        shares = np.exp(logits.astype(np.float64) - float(logits.max()))
        return int(rng.choice(len(shares), p=shares / shares.sum()))

    template = ChatTemplate.of(context) if chat else None
    for number in range(n):
        prompt, answer = like[number % len(like)]
        if template is None:
            start, room, end = _beginning(context), len(prompt), prompt[-1]
        else:
            question = _question(context, template, draw)
            start = template.tokens(context, [{"role": "user", "content": question}])
            # Twice its length: so long it may take until the token comes up.
            room, end = 2 * len(answer), answer[-1] if answer else -1
        text = continued(context, start, room, draw)
        yield _ended(text, len(start), end)
        if progress:
            progress(number + 1, n)


def _beginning(context: Context) -> list[int]:
    """What every text begins with; of a model without such a token, a line's end."""
    return context.tokenize("", special=False) or context.tokenize("\n", special=False)


def _question(context: Context, template: ChatTemplate, draw: Callable[[F32Array], int]) -> str:
    rendered = template.text([{"role": "user", "content": _PLACE}])
    start = context.tokenize(rendered[: rendered.index(_PLACE)], special=True, add_bos=False)
    for _ in range(_TRIES):
        said = continued(context, start, LONGEST_QUESTION, draw)[len(start) :]
        question = b"".join(map(context.piece, said)).decode(errors="ignore").strip()
        if question:
            return question
    raise UsageError(
        "the model makes up no question to hold the texts against", hint="Give --negative"
    )


def _ended(tokens: list[int], n_given: int, end: int) -> list[int]:
    at = [i for i in range(n_given, len(tokens)) if tokens[i] == end]
    return tokens[: at[-1] + 1] if at else tokens
