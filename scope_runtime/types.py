"""Small shared types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class StrEnum(str, Enum):
    """``enum.StrEnum`` of Python 3.11, for 3.10: members are, print and format as their value."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return format(str(self.value), format_spec)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a policy is compiled against.

    Attributes:
        architecture: llama.cpp's ``general.architecture`` (``qwen3``).
        n_layer: blocks that can be steered (multi-token-prediction blocks are not counted).
        n_embd: width of the residual stream.
    """

    architecture: str
    n_layer: int
    n_embd: int


MAX_SEED = 2**32 - 2
"""Of a draw: llama.cpp takes 32 bits, and all of them set for a random one."""


class Pooling(StrEnum):
    """What of a text's tokens its embedding is made of.

    Attributes:
        MODEL: what the model's file says.
        MEAN: the mean of all.
        CLS: the first.
        LAST: the last.
    """

    MODEL = "model"
    MEAN = "mean"
    CLS = "cls"
    LAST = "last"
