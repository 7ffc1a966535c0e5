"""What of a model's vocabulary the gateway must know without loading the model."""

from __future__ import annotations

from pathlib import Path

from scope_runtime.errors import ModelError
from scope_runtime.files import open_regular
from scope_runtime.gguf_check import read_header

_TOKENS = "tokenizer.ggml.tokens"
_TYPES = "tokenizer.ggml.token_type"
_CONTROL = 3
_SPECIAL = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom"))


def control_texts(model: str | Path) -> list[str]:
    """The texts of a GGUF file's control tokens, longest first: what a stranger must not write."""
    with open_regular(model, ModelError) as file:
        header = read_header(
            file, str(model), ModelError, keep_array=lambda key: key in (_TOKENS, _TYPES)
        )
    tokens, types = header.values.get(_TOKENS), header.values.get(_TYPES)
    if not isinstance(tokens, (list, tuple)):
        return []
    ids = [header.values.get(name) for name in _SPECIAL]
    special = {each for each in ids if isinstance(each, int) and 0 <= each < len(tokens)}
    if isinstance(types, (list, tuple)):
        special |= {i for i, kind in enumerate(types[: len(tokens)]) if kind == _CONTROL}
    texts = {str(tokens[i]) for i in special}
    return sorted(texts - {""}, key=lambda text: (-len(text), text))
