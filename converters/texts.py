"""Samples of text: plain, one a line, or JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_runtime.errors import Location, UsageError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.llama.chat import ChatTemplate, Message
from scope_runtime.llama.context import Context

MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """One text, or one conversation."""

    text: str = ""
    messages: tuple[Message, ...] = ()


def read_texts(path: str | Path) -> tuple[Text, ...]:
    r"""Texts of a file, in its order; empty lines are passed over.

    A file that ends in ``.jsonl`` has one JSON value a line: a string, ``{"text": …}`` or
    ``{"messages": [{"role": …, "content": …}, …]}``. Any other has one text a line, taken as it is.

    Raises:
        UsageError: with file and line.
    """
    name = str(path)
    with open_regular(path, UsageError) as file:
        raw = bytes(read_exactly(file, 0, MAX_BYTES + 1))
    if len(raw) > MAX_BYTES:
        raise UsageError("the sample is too long", location=Location(name))
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as reason:
        raise UsageError("no UTF-8", location=Location(name), found=str(reason)) from None
    as_json = Path(path).suffix == ".jsonl"
    texts = tuple(
        _of_json(line, Location(name, number)) if as_json else Text(line.rstrip("\r"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not texts:
        raise UsageError("no text in it", location=Location(name))
    return texts


def _of_json(line: str, location: Location) -> Text:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise UsageError("no JSON", location=location, found=str(reason)[:120]) from None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"]
    if isinstance(value, str):
        return Text(value)
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UsageError(
            "no text", location=location, expected='a string, {"text": …} or {"messages": […]}'
        )
    return Text(messages=tuple({"role": m["role"], "content": m["content"]} for m in messages))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )


def tokenised(context: Context, text: Text, template: ChatTemplate | None = None) -> list[int]:
    """Its tokens; with a template a plain text is a user's message. Conversations always take one."""
    if text.messages:
        return (template or ChatTemplate.of(context)).tokens(context, text.messages)
    if template is not None:
        return template.tokens(context, [{"role": "user", "content": text.text}])
    return context.tokenize(text.text, special=False)
