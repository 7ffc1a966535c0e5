"""A text as a model read it: tokens, residuals, and what it was about to say."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scope_runtime.errors import Location, UsageError
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.recording import Recording


@dataclass(frozen=True, slots=True)
class Said:
    """A token that the model was about to say, its text, and its probability at temperature 1."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One text as a model read it.

    Attributes:
        name: what it is, for people: ``text``, ``request r1``, ``text 3 of x.rec``.
        tokens: ids.
        pieces: the text of each; joined they are the text. A token whose bytes complete no character has none:
            its part is in the token that does. Without a vocabulary ``#id``.
        n_prompt: how many of them are prompt, the rest is an answer; None: not known.
        layers: per layer the residual at every token, (n_tokens, width), before any change there.
        after: likewise after the policy's change; the same arrays where nothing was changed.
        next: per token what the model was about to say after it, the likeliest first; empty: not known.
        policy: revision that it was read under; None: unsteered.
    """

    name: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    n_prompt: int | None
    layers: Mapping[int, F32Array] = field(repr=False)
    after: Mapping[int, F32Array] = field(repr=False)
    next: tuple[tuple[Said, ...], ...] = field(default=(), repr=False)
    policy: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def has_answer(self) -> bool:
        """Whether some of it is known to be an answer."""
        return self.n_prompt is not None and self.n_prompt < len(self.tokens)

    def answer(self) -> Reading:
        """The answer alone; all of it where no answer is known, or there is none."""
        n = self.n_prompt
        if n is None or not self.has_answer:
            return self
        return Reading(
            f"answer of {self.name}",
            self.tokens[n:],
            self.pieces[n:],
            0,
            {layer: h[n:] for layer, h in self.layers.items()},
            {layer: h[n:] for layer, h in self.after.items()},
            self.next[n:],
            self.policy,
        )


def recorded(
    recording: Recording,
    layers: Iterable[int],
    pieces: Callable[[Iterable[int]], tuple[str, ...]] | None = None,
) -> tuple[Reading, ...]:
    """The texts of a recording, which need no model to be read.

    Args:
        layers: those that are wanted.
        pieces: the tokens' texts, such as `Reader.pieces`; a recording has ids alone.

    Raises:
        UsageError: the recording lacks a layer.
    """
    wanted = sorted(set(layers))
    there = recording.texts[0].layers
    lacking = [layer for layer in wanted if layer not in there]
    if lacking:
        raise UsageError(
            "the recording lacks a layer",
            location=Location(recording.path),
            found=f"layers {', '.join(map(layer_name, there))}",
            expected=", ".join(map(layer_name, lacking)),
        )
    out = []
    for number, text in enumerate(recording.texts):
        h = {layer: text.residual(layer) for layer in wanted}
        named = tuple(f"#{token}" for token in text.tokens)
        out.append(
            Reading(
                f"text {number} of {Path(recording.path).name}",
                text.tokens,
                pieces(text.tokens) if pieces is not None else named,
                text.n_prompt,
                h,
                h,
            )
        )
    return tuple(out)


def decoded(parts: Iterable[bytes]) -> tuple[str, ...]:
    """Bytes of tokens as text: each character is the text of the token that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    out = [decoder.decode(part) for part in parts]
    rest = decoder.decode(b"", final=True)
    if rest and out:
        out[-1] += rest
    return tuple(out)
