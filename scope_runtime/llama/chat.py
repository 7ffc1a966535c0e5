"""Chat messages to prompt tokens, through the template that the model carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from scope_runtime.errors import ModelError, UsageError
from scope_runtime.llama.context import Context


class Message(TypedDict):
    """One message: role ``system``, ``user`` or ``assistant``, and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's Jinja template, rendered in llama-cpp-python's sandbox; None: the model has none."""

    formatter: Any

    @classmethod
    def of(cls, context: Context) -> ChatTemplate:
        template = context.chat_template()
        if template is None:
            return cls(None)
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        try:
            formatter = Jinja2ChatFormatter(
                template=template,
                eos_token=context.token_text("eos"),
                bos_token=context.token_text("bos"),
            )
        except Exception as error:  # jinja2's own family; its base class is not ours to import
            raise ModelError(
                "the model's chat template cannot be read",
                found=f"{type(error).__name__}: {error}",
                hint="Use a raw prompt (--raw), or a model file with a sound template",
            ) from error
        return cls(formatter)

    def tokens(self, context: Context, messages: Sequence[Message]) -> list[int]:
        """Prompt tokens for an answer by the assistant."""
        text = self.text(messages)
        bos = context.token_text("bos")
        return context.tokenize(text, special=True, add_bos=not (bos and text.startswith(bos)))

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt's text, up to where the assistant's answer begins.

        Raises:
            UsageError: the template does not take these messages.
            ModelError: the model has no template.
        """
        if not messages:
            raise UsageError("there are no messages")
        if self.formatter is None:
            raise ModelError(
                "the model has no chat template",
                hint="Use a raw prompt: --raw, or Runtime.generate",
            )
        try:
            return str(self.formatter(messages=list(messages)).prompt)
        except Exception as error:
            raise UsageError(
                "the model's chat template does not take these messages",
                found=f"{type(error).__name__}: {error}",
            ) from error
