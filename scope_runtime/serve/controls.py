"""Control tokens that a stranger writes out in a chat: they are taken out, or they would count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Controls:
    """What matches a control token that is written out, the longest of which has so many characters."""

    pattern: re.Pattern[str]
    longest: int


def control_pattern(texts: Sequence[str]) -> Controls | None:
    """What matches one of these texts; None where there are none."""
    if not texts:
        return None
    return Controls(re.compile("|".join(map(re.escape, texts))), max(map(len, texts)))


def without_controls(text: str, controls: Controls | None) -> str:
    """A stranger's text without control tokens, also without those that appear when others are taken out."""
    if controls is None or not controls.pattern.search(text):
        return text
    # From left to right into `kept`, which never holds one: the time grows with the text, not with its square.
    kept: list[str] = []
    at = 0
    while (found := controls.pattern.search(text, at)) is not None:
        # In small pieces, because its end may be taken off again and again.
        for start in range(at, found.start(), controls.longest):
            kept.append(text[start : min(start + controls.longest, found.start())])
        at = _joined(kept, text, found.end(), controls)
    return "".join((*kept, text[at:]))


def _joined(kept: list[str], text: str, at: int, controls: Controls) -> int:
    """Takes out what the end of ``kept`` forms with ``text[at:]``; returns where the text goes on."""
    while True:
        tail = ""
        while kept and len(tail) < controls.longest:
            tail = kept.pop() + tail
        found = controls.pattern.search(tail + text[at : at + controls.longest])
        if found is None or found.start() >= len(tail):
            kept.append(tail)
            return at
        kept.append(tail[: found.start()])
        at += found.end() - len(tail)
