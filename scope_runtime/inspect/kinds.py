"""Texts of two kinds through a model and whole SAE layers: what every search for features starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import ModelError
from scope_runtime.inspect.ahead import Ahead, Directions, NextWords
from scope_runtime.inspect.background import own_texts
from scope_runtime.inspect.sample import Part, Sample, sample
from scope_runtime.inspect.texts import prompts_and_answers, tokenised
from scope_runtime.inspect.vocabulary import OutputHead
from scope_runtime.pack_types import F32Array
from scope_runtime.sae.layers import SaeLayers

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.files import Progress
    from scope_runtime.llama.capture import TextResiduals
    from scope_runtime.llama.checks import ModelInfo
    from scope_runtime.llama.context import Context

N_ENCODED = 128
"""Tokens that are encoded at a time: of an SAE with a dense gate each has many active latents."""


def encode_kinds(
    context: Context,
    saes: SaeLayers,
    positive: Sequence[Text],
    negative: Sequence[Text],
    *,
    chat: bool = False,
    ahead: bool = False,
    progress: Progress | None = None,
) -> Sample:
    """Reads texts of two kinds and encodes each of their tokens with every layer.

    Args:
        context: from `scope_runtime.llama.capture.capturing`.
        saes: layers.
        positive: texts of the wanted kind.
        negative: texts of the other.
        chat: plain texts are user's messages.
        ahead: look as well at what the model is about to say where each text ends, if its output head can be read.
        progress: told the texts that are done.

    Raises:
        UsageError: a kind without texts, or a text that is too long or has no tokens.
        HookError: residuals did not arrive for every token.
    """
    yes, no = (tokenised(context, texts, chat=chat) for texts in (positive, negative))
    return encoded(context, saes, yes, no, ahead=ahead, progress=progress)


def own_tokens(
    context: Context, like: Sequence[Text], *, chat: bool, seed: int, progress: Progress | None
) -> list[list[int]]:
    """Texts that the model makes up in the shape of some; see `own_texts`."""
    shapes = prompts_and_answers(context, like, chat=chat)
    talks = chat or all(text.messages for text in like)
    return list(own_texts(context, shapes, chat=talks, seed=seed, progress=progress))


def encoded(
    context: Context,
    saes: SaeLayers,
    positive: Sequence[list[int]],
    negative: Sequence[list[int]],
    *,
    ahead: bool = False,
    progress: Progress | None = None,
) -> Sample:
    """As `encode_kinds`, of token ids."""
    from scope_runtime.llama.capture import residuals

    tokens = [*positive, *negative]
    ends, words = list[F32Array](), _next_words(context.info) if ahead else None

    def texts() -> Iterator[Iterator[Part]]:
        for number, text in enumerate(residuals(context, tokens, saes.layers), 1):
            if words is not None:
                words.add(context.output_logits())
                ends.append(text.layers[max(saes.layers)][-1].copy())
            yield _parts(text, saes)
            if progress:
                progress(number, len(tokens))

    read = sample(texts(), [True] * len(positive) + [False] * len(negative))
    if words is None:
        return read
    directions: Directions = lambda layer, ids: saes.layer(layer).decoder(ids.tolist())  # noqa: E731
    return replace(read, ahead=Ahead(words.rows(), np.stack(ends), directions))


def _next_words(info: ModelInfo) -> NextWords | None:
    """None where the output head cannot be read; the note on the vocabulary says so."""
    try:
        head = OutputHead(info)
        head.mixed(np.zeros((1, head.n_vocab), np.float32))
    except ModelError:
        return None
    return NextWords(head)


def _parts(text: TextResiduals, saes: SaeLayers) -> Iterator[Part]:
    for first in range(0, len(text.tokens), N_ENCODED):
        here = slice(first, first + N_ENCODED)
        yield (
            text.tokens[here],
            {layer.layer: layer.encode(text.layers[layer.layer][here]) for layer in saes},
        )
