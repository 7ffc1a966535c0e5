"""Texts through a model and whole SAE layers: each token's active latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_runtime.pack_types import F32Array
from scope_runtime.sae.active import Active
from scope_runtime.sae.layer import FullLayer

if TYPE_CHECKING:
    from scope_runtime.llama.context import Context


@dataclass(frozen=True, slots=True, eq=False)
class EncodedText:
    """One text.

    Attributes:
        tokens: its token ids.
        active: per layer the active latents of each token.
        residuals: per layer, before any change, (n_tokens, width).
    """

    tokens: tuple[int, ...]
    active: dict[int, Active]
    residuals: dict[int, F32Array]


def encode_texts(
    context: Context, texts: Iterable[str | Sequence[int]], saes: Iterable[FullLayer]
) -> Iterator[EncodedText]:
    """Reads texts one after the other, each on empty memory, and encodes every token.

    Args:
        context: from `scope_runtime.llama.capture.capturing`.
        texts: text, or token ids; each at most n_ctx tokens (`capture.windows` cuts).
        saes: layers, each once.

    Raises:
        UsageError: a text is too long, or the model has no such layer, or another width.
        HookError: residuals did not arrive for every token.
    """
    from scope_runtime.llama.capture import residuals

    by_layer = {sae.layer: sae for sae in saes}
    for read in residuals(context, texts, by_layer):
        active = {layer: by_layer[layer].encode(h) for layer, h in read.layers.items()}
        yield EncodedText(read.tokens, active, read.layers)
