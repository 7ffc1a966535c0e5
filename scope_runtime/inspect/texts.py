"""Texts that people give, as tokens of a model; a conversation may stop in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from scope_runtime.errors import UsageError
from scope_runtime.llama.chat import ChatTemplate

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.llama.context import Context


def tokenised(context: Context, texts: Sequence[Text], *, chat: bool = False) -> list[list[int]]:
    """Their tokens. A conversation that ends with the assistant's words is left open there.

    Args:
        context: of the model.
        texts: plain texts or conversations.
        chat: a plain text is a user's message, and ends where the answer would begin.

    Raises:
        UsageError: a text has no tokens, or the template does not take a conversation.
        ModelError: there are conversations and the model has no template.
    """
    return [[*prompt, *answer] for prompt, answer in prompts_and_answers(context, texts, chat=chat)]


def prompts_and_answers(
    context: Context, texts: Sequence[Text], *, chat: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Their tokens, as `tokenised`, parted where a conversation's last answer begins; a plain text is all prompt."""
    template: ChatTemplate | None = None
    out = []
    for text in texts:
        messages, answered = list(text.messages), list[int]()
        if chat and not messages:
            messages = [{"role": "user", "content": text.text}]
        if not messages:
            tokens = context.tokenize(text.text, special=False)
        else:
            template = template or ChatTemplate.of(context)
            answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
            tokens = template.tokens(context, messages)
            answered = context.tokenize(answer, special=False, add_bos=False) if answer else []
        if not tokens:
            raise UsageError("a text has no tokens", found=repr(text.text[:40]))
        out.append((tokens, answered))
    return out


Words = Callable[[Iterable[int]], str]
"""From tokens to their text, control tokens written out; what is no whole character is left out."""


def words_of(context: Context) -> Words:
    """The `Words` of a model."""
    known: dict[int, bytes] = {}

    def words(tokens: Iterable[int]) -> str:
        tokens = list(tokens)
        for token in tokens:
            if token not in known:
                known[token] = context.piece(token, special=True)
        return b"".join(known[token] for token in tokens).decode(errors="ignore")

    return words
