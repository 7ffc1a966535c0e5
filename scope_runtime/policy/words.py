"""How messages name values, list names and guess what was meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

_MAX_LISTED = 16


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant, if one is near."""
    folded = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Sequence[str]) -> str | None:
    """``Did you mean "x"?`` or None."""
    near = nearest(name, known)
    return f'Did you mean "{near}"?' if near else None


def listed(names: Sequence[str], last: str = "or") -> str:
    """``a, b or c``."""
    if len(names) < 2:
        return "".join(names)
    if len(names) > _MAX_LISTED:
        return f"{', '.join(names[:_MAX_LISTED])}, … ({len(names)} in all)"
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def describe(value: Any, written: str | None = None, *, typed: bool = False) -> str:
    """A value as messages show it; ``typed`` where a text's being text is what is wrong."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f'{"text " if typed else ""}"{cut(value)}"' if value else "empty text"
    text = written if written is not None else json.dumps(value)
    return text if isinstance(value, bool) else f"the number {cut(text)}"


def quotes_advice(value: Any, written: str | None, wanted: dict[str, Any]) -> str | None:
    """Advice for the commonest slip: quotes that are missing, or that should not be there."""
    if wanted.get("type") == "string" and isinstance(value, (bool, int, float)) and written:
        fits = "const" not in wanted and matches(wanted.get("pattern", ""), written)
        fits = fits and written in wanted.get("enum", [written])
        return f'Put it in quotes: "{written}".' if fits else None
    if wanted.get("type") in ("number", "integer") and isinstance(value, str):
        return "Remove the quotes." if re.fullmatch(r"[-+]?[0-9.]+", value) else None
    return None


def matches(pattern: str, text: str) -> bool:
    """Whether a JSON Schema pattern is found in the text.

    ECMA's "$" ends the text; Python's also matches before a final newline.
    """
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def cut(text: str, length: int = 60) -> str:
    """The text on one line, and not too long for a message."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= length else text[: length - 1] + "…"
