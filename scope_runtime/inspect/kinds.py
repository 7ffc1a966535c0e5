"""Texts of two kinds through a model and whole SAE layers: what every search for features starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import ModelError, UsageError
from scope_runtime.inspect.ahead import Ahead, Directions, NextWords
from scope_runtime.inspect.answers import alike, answers, before, pattern_of
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


@dataclass(frozen=True, slots=True)
class Answers:
    """Prompts that the model answers, instead of texts that are read as they stand.

    Attributes:
        max_tokens: of an answer, which is greedy.
        until: regular expression of what the behaviour begins with; answers to positive prompts stop just before it,
            the others where they are most like those. None: answers are whole.
    """

    max_tokens: int
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Kinds:
    """Texts of two kinds as tokens, and from where on each counts, if it is not from its start."""

    positive: list[list[int]]
    negative: list[list[int]]
    begins: list[int] | None = None
    notes: tuple[str, ...] = ()


def answered_kinds(
    context: Context,
    positive: Sequence[Text],
    negative: Sequence[Text],
    wanted: Answers,
    progress: Progress | None = None,
) -> Kinds:
    """The model's answers to prompts of two kinds; of each the answer counts, from the token on that chooses its first.

    Args:
        context: from `scope_runtime.llama.capture.capturing`.
        positive: prompts to which the behaviour shows; plain texts are user's messages.
        negative: prompts to which it does not.
        wanted: what answers are.
        progress: told the prompts that are answered.

    Raises:
        UsageError: of a kind no answer is left, or ``until`` is no regular expression.
        ModelError: the model has no template.
    """
    behaviour = None if wanted.until is None else pattern_of(wanted.until)
    prompts = tokenised(context, [*positive, *negative], chat=True)
    every = list(answers(context, prompts, wanted.max_tokens, progress))
    yes, no = every[: len(positive)], every[len(positive) :]
    notes = []
    if behaviour is not None:
        cut = [before(context, each, behaviour) for each in yes]
        showing = [each for each in cut if each is not None]
        clean = [each for each in no if before(context, each, behaviour) is None]
        if not showing or not clean:
            raise UsageError(
                "no answer shows the behaviour"
                if not showing
                else "every answer shows the behaviour",
                found=f"{len(showing)} of {len(yes)} positive and {len(no) - len(clean)} of "
                f"{len(no)} negative prompts show {wanted.until}",
                hint="Let answers be longer, or give other prompts",
            )
        if len(showing) < len(yes) or len(clean) < len(no):
            notes.append(
                f"left out: {len(yes) - len(showing)} positive prompts whose answers do not show it, "
                f"{len(no) - len(clean)} negative ones whose answers do"
            )
        yes = showing
        no = [alike(each, showing[i % len(showing)]) for i, each in enumerate(clean)]
    return Kinds(
        [each.tokens for each in yes],
        [each.tokens for each in no],
        [each.n_prompt - 1 for each in (*yes, *no)],
        tuple(notes),
    )


def encoded(
    context: Context,
    saes: SaeLayers,
    positive: Sequence[list[int]],
    negative: Sequence[list[int]],
    *,
    begins: Sequence[int] | None = None,
    ahead: bool = False,
    progress: Progress | None = None,
) -> Sample:
    """As `encode_kinds`, of token ids; ``begins`` as in `sample`."""
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

    kinds = [True] * len(positive) + [False] * len(negative)
    read = sample(texts(), kinds, begins)
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
