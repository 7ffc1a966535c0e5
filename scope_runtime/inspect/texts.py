"""Texts that people give, as tokens of a model; a conversation may stop in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from scope_runtime.errors import UsageError
from scope_runtime.llama.chat import ChatTemplate, Message

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


class Tokeniser(Protocol):
    """Text to tokens; `scope_runtime.Runtime` is one, which takes control tokens in a plain text for such."""

    def tokenize(self, text: str) -> list[int]: ...

    def tokenize_chat(self, messages: list[Message]) -> list[int]: ...

    def tokenize_answer(self, text: str) -> list[int]: ...


class OfContext:
    """A context's own, for texts of any origin: control tokens that are written out in them are mere text."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._template: ChatTemplate | None = None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain text."""
        return self._context.tokenize(text, special=False)

    def tokenize_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of messages up to where an answer would begin. Raises UsageError and ModelError."""
        self._template = self._template or ChatTemplate.of(self._context)
        return self._template.tokens(self._context, messages)

    def tokenize_answer(self, text: str) -> list[int]:
        """Token ids of an answer's text."""
        return self._context.tokenize(text, special=False, add_bos=False)


def parted(
    tokeniser: Tokeniser, text: str | Sequence[Message], *, chat: bool = False
) -> tuple[list[int], list[int]]:
    """A text's tokens, parted where the answer begins that a conversation ends with; else all is prompt.

    Args:
        tokeniser: of the model.
        text: plain, or a conversation; the answer that it ends with is left open there.
        chat: a plain text is a user's message, and ends where the answer would begin.

    Raises:
        UsageError: the template does not take a conversation.
        ModelError: the model has no template, and one is needed.
    """
    if isinstance(text, str) and not chat:
        return tokeniser.tokenize(text), []
    messages: list[Message] = (
        [{"role": "user", "content": text}] if isinstance(text, str) else list(text)
    )
    answer = ""
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
    return tokeniser.tokenize_chat(messages), tokeniser.tokenize_answer(answer) if answer else []


def prompts_and_answers(
    context: Context, texts: Sequence[Text], *, chat: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Their tokens, as `tokenised`, parted where a conversation's last answer begins; a plain text is all prompt."""
    tokeniser = OfContext(context)
    out = []
    for text in texts:
        prompt, answer = parted(tokeniser, text.messages or text.text, chat=chat)
        if not prompt:
            raise UsageError("a text has no tokens", found=repr(text.text[:40]))
        out.append((prompt, answer))
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
