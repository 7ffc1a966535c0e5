"""Control tokens that a stranger writes out in a chat: they are taken out, or they would count."""

from __future__ import annotations

import re
from collections.abc import Sequence


def control_pattern(texts: Sequence[str]) -> re.Pattern[str] | None:
    """What matches a control token that is written out; None where there are none."""
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def without_controls(text: str, controls: re.Pattern[str] | None) -> str:
    """A stranger's text without control tokens, also without those that appear when others are taken out."""
    while controls is not None and controls.search(text):
        text = controls.sub("", text)
    return text
