"""Small shared types."""

from __future__ import annotations

from enum import Enum


class StrEnum(str, Enum):
    """``enum.StrEnum`` of Python 3.11, for 3.10: members are, print and format as their value."""

    def __str__(self) -> str:
        return str(self.value)

    __format__ = str.__format__
