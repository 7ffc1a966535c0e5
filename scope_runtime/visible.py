"""Text of models and users, made safe to show."""

from __future__ import annotations

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """The text without the power to move a terminal's cursor: control characters as their pictures."""
    return text.translate(_CONTROLS)


def shown_token(piece: str) -> str:
    """A token on one line: blanks at its ends and line ends are seen; ``⋯`` where it completes no character."""
    text = visible(piece.replace("\n", "⏎").replace("\t", "⇥"))
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "⋯"
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - len(text.rstrip(" "))
    return "␣" * before + inner + "␣" * after


def shown_number(value: float) -> str:
    """An activation or a difference to three or four figures, one kind of number below another: ``174.4``, ``0.52``."""
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
