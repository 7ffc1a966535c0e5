"""In which order sets came into force, as a pile: what is rolled back from is taken off it, and not gone back to."""

from __future__ import annotations

from collections.abc import Container

History = tuple[str, ...]
"""Revisions, the one in force last."""


def put_on(history: History, revision: str, most: int) -> History:
    """With what came into force by a reload, at most so many."""
    if history and history[-1] == revision:
        return history[-most:]
    return (*history, revision)[-most:]


def back_to(history: History, revision: str, most: int) -> History:
    """With what was rolled back to: what came into force after it is taken off."""
    if revision not in history:
        return put_on(history, revision, most)
    return history[: len(history) - history[::-1].index(revision)]


def before(history: History, current: str, kept: Container[str]) -> str | None:
    """What was in force before the present one, of what is still kept."""
    return next((each for each in reversed(history) if each != current and each in kept), None)
