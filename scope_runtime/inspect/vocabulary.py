"""What a direction says in words: the tokens that it makes more and less likely, straight through the output head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from scope_runtime.errors import Location, ModelError
from scope_runtime.files import Progress, open_regular
from scope_runtime.gguf_check import TensorInfo, read_header
from scope_runtime.inspect.statistics import Floats
from scope_runtime.inspect.texts import Words
from scope_runtime.llama.checks import ModelInfo
from scope_runtime.pack_types import F32Array

ROWS_BYTES = 64 << 20
"""About as much of the head is held in F32 at a time."""
_HEADS = ("output.weight", "token_embd.weight")
_NORM = "output_norm.weight"
_CENTRED = "output_norm.bias"


@dataclass(frozen=True, slots=True)
class Push:
    """A token and how much a direction favours it, in standard deviations over the vocabulary."""

    token: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: str
    info: TensorInfo


class OutputHead:
    """A model file's last norm and output head; tied embeddings where it has no head of its own.

    What a direction does on its way through later blocks is not in it: at the last block the answer is
    the whole effect up to the norm's division, at earlier ones the direct part of it.

    Attributes:
        n_vocab: rows of the head.
    """

    def __init__(self, model: ModelInfo) -> None:
        """Find the tensors; nothing is read yet.

        Raises:
            ModelError: the model has no such tensors, or of a type that only llama.cpp itself reads.
        """
        self._model = model
        tensors = _tensors(model, (*_HEADS, _NORM, _CENTRED))
        head = next((tensors[name] for name in _HEADS if name in tensors), None)
        if head is None or _NORM not in tensors:
            self._fail("the output head is not found", expected=f"{_HEADS[0]} and {_NORM}")
        if head.info.shape[-1] != model.n_embd:
            self._fail("the output head has another width", found=str(head.info.shape))
        self._head = head
        self._gain = self._rows(tensors[_NORM], 0, 1)[0]
        self._centred = _CENTRED in tensors
        self.n_vocab = head.info.shape[0]

    def scores(self, directions: F32Array, progress: Progress | None = None) -> Floats:
        """How each direction moves each token's logit, (n_directions, n_vocab).

        In standard deviations over the vocabulary, around its mean: softmax does not see a shift, and
        how long a direction is says nothing of what it means.

        Args:
            directions: (n_directions, n_embd).
            progress: told the rows of the head that are done.

        Raises:
            ModelError: the head is of a type that only llama.cpp itself reads.
        """
        through = directions.astype(np.float64)
        if self._centred:  # LayerNorm takes the mean out first
            through = through - through.mean(axis=1, keepdims=True)
        through = (through * self._gain).astype(np.float32)
        out = np.empty((len(directions), self.n_vocab))
        step = max(ROWS_BYTES // (4 * self._model.n_embd), 1)
        for first in range(0, self.n_vocab, step):
            n = min(step, self.n_vocab - first)
            out[:, first : first + n] = through @ self._rows(self._head, first, n).T
            if progress:
                progress(first + n, self.n_vocab)
        out -= out.mean(axis=1, keepdims=True)
        spread = out.std(axis=1, keepdims=True)
        return np.asarray(np.divide(out, spread, out=np.zeros_like(out), where=spread > 0))

    def mixed(self, shares: F32Array) -> F32Array:
        """Rows of the head mixed in given shares, with the last norm's gain: the way that they lie in the residual.

        Args:
            shares: (n, n_vocab).

        Raises:
            ModelError: the head is of a type that only llama.cpp itself reads.
        """
        out = np.zeros((len(shares), self._model.n_embd), np.float32)
        step = max(ROWS_BYTES // (4 * self._model.n_embd), 1)
        for first in range(0, self.n_vocab, step):
            n = min(step, self.n_vocab - first)
            out += shares[:, first : first + n] @ self._rows(self._head, first, n)
        out *= self._gain
        return out - out.mean(axis=1, keepdims=True) if self._centred else out

    def _rows(self, tensor: _Tensor, first: int, n: int) -> F32Array:
        info = tensor.info
        row_bytes = info.n_bytes // (info.shape[0] if len(info.shape) > 1 else 1)
        raw = np.memmap(tensor.file, np.uint8, "r", info.offset + first * row_bytes, (n, row_bytes))
        try:
            return np.asarray(dequantize(raw, GGMLQuantizationType(info.type.number)), np.float32)
        except (NotImplementedError, ValueError):
            self._fail(f"{info.name} is of a type that cannot be read here", found=info.type.name)

    def _fail(
        self, message: str, *, found: str | None = None, expected: str | None = None
    ) -> NoReturn:
        raise ModelError(
            message, location=Location(self._model.path), found=found, expected=expected
        )


def pushed(scores: Floats, n: int, words: Words) -> tuple[tuple[Push, ...], tuple[Push, ...]]:
    """The n tokens that a direction favours most and the n that it favours least, from its scores (n_vocab,).

    Tokens that are only blanks or pieces of characters are passed over.
    """

    def readable(order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[Push, ...]:
        found: list[Push] = []
        for token in order.tolist():
            text = words([token])
            if text.strip() and text.isprintable():
                found.append(Push(token, text, float(scores[token])))
            if len(found) == n:
                break
        return tuple(found)

    order = np.argsort(-scores, kind="stable")
    return readable(order), readable(order[::-1])


def _tensors(model: ModelInfo, names: tuple[str, ...]) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    for path in model.files:
        with open_regular(Path(path), ModelError) as file:
            header = read_header(file, path, ModelError)
        found |= {n: _Tensor(path, header.tensors[n]) for n in names if n in header.tensors}
    return found
