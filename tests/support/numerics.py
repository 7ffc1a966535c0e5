"""How precisely llama.cpp computes: as it comes, or all in F32.

By default llama.cpp keeps keys and values in F16 and its flash attention computes in F16: its logits
differ from PyTorch's by a few 1e-4 of their range, steered or not. With an F32 cache and plain
attention they agree to rounding, and so a test can ask a thousand times more of the hook.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

F32_CACHE, NO_FLASH_ATTENTION = 0, 0


class Numerics:
    """Decides over every context that is made, whoever makes it.

    Attributes:
        all_f32: F32 cache and plain attention.
    """

    def __init__(self) -> None:
        self.all_f32 = True

    @contextmanager
    def in_force(self) -> Iterator[None]:
        from llama_cpp import llama_cpp as api

        original = api.llama_context_default_params

        def default_params() -> Any:
            params = original()
            if self.all_f32:
                params.type_k = params.type_v = F32_CACHE
                params.flash_attn_type = NO_FLASH_ATTENTION
            return params

        api.llama_context_default_params = default_params
        try:
            yield
        finally:
            api.llama_context_default_params = original

    @contextmanager
    def as_it_comes(self) -> Iterator[None]:
        """Inside, contexts are made as llama.cpp makes them."""
        self.all_f32 = False
        try:
            yield
        finally:
            self.all_f32 = True
