"""An answer that grows by tokens: whole characters of text, stop texts, log probabilities."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.llama.context import Context
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.stops import Stops


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token and its natural log probability before any sampling; ``data`` are its bytes.

    Attributes:
        top: the most likely tokens at this place, most likely first.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[TokenScore, ...] = ()


class Piece(str):
    """A piece of the answer's text, never half a character.

    Attributes:
        scores: of the tokens that it ends, where log probabilities were asked for.
    """

    __slots__ = ("scores",)
    scores: tuple[TokenScore, ...]

    def __new__(cls, text: str, scores: tuple[TokenScore, ...] = ()) -> Piece:
        piece = super().__new__(cls, text)
        piece.scores = scores
        return piece


class Answer:
    """Takes tokens, gives pieces of text.

    Attributes:
        tokens: every token that was taken.
        scores: of the tokens whose text was given.
    """

    def __init__(self, context: Context, sampling: Sampling) -> None:
        self._context = context
        self._top = sampling.top_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = Stops(sampling.stop)
        self._text: list[str] = []
        self._n_chars = 0  # decoded so far; what was given of them is in _n_given
        self._n_given = 0
        self._waiting: list[tuple[int, TokenScore]] = []  # where its text ends, and the score
        self.tokens: list[int] = []
        self.scores: list[TokenScore] = []

    @property
    def text(self) -> str:
        """What was given."""
        return "".join(self._text)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._stops.found

    def take(self, token: int, logits: npt.NDArray[np.float32] | None = None) -> Piece | None:
        """The next token, with the logits (n_vocab,) that it was drawn from if scores are wanted."""
        self.tokens.append(token)
        data = self._context.piece(token)
        text = self._decoder.decode(data)
        self._n_chars += len(text)
        if self._top is not None and logits is not None:
            self._waiting.append(
                (self._n_chars, score(self._context, token, data, logits, self._top))
            )
        return self._give(self._stops.feed(text))

    def end(self) -> Piece | None:
        """What was still held back, when no token comes any more."""
        if self.stopped:
            return None
        text = self._decoder.decode(b"", final=True)
        self._n_chars += len(text)
        return self._give(self._stops.feed(text) + self._stops.rest())

    def _give(self, text: str) -> Piece | None:
        self._n_given += len(text)
        n = sum(1 for end, _ in self._waiting if end <= self._n_given)
        scores = tuple(each for _, each in self._waiting[:n])
        del self._waiting[:n]
        if not text and not scores:
            return None
        self._text.append(text)
        self.scores += scores
        return Piece(text, scores)


def score(
    context: Context, token: int, data: bytes, logits: npt.NDArray[np.float32], n_top: int
) -> TokenScore:
    """The log probability of a token, and the ``n_top`` most likely ones, from the logits (n_vocab,)."""
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())
    n = min(n_top, logprobs.size)
    best = [int(i) for i in np.argpartition(-logprobs, n - 1)[:n]] if n else []
    top = tuple(
        TokenScore(each, context.piece(each, special=True), float(logprobs[each]))
        for each in sorted(best, key=lambda i: (-logprobs[i], i))
    )
    return TokenScore(token, data, float(logprobs[token]), top)
