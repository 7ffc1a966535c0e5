"""Texts as a model reads them: tokens, residuals and what it was about to say, from a model, a log or a recording."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from scope_runtime.audit.logged import Logged
from scope_runtime.errors import Location, UsageError
from scope_runtime.llama.chat import Message
from scope_runtime.llama.observe import NextToken, Observed
from scope_runtime.pack_types import F32Array
from scope_runtime.program import Program
from scope_runtime.recording import RecordedText, Recording
from scope_runtime.replay import hook_points, replay
from scope_runtime.runtime import Runtime

N_NEXT = 5
"""So many next tokens are listed with each token."""


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


class Reader:
    """A model that reads texts, unsteered or under a policy.

        with Reader("model.gguf") as reader:
            reading = reader.text("Good morning.", layers=[3])

    Args:
        model: GGUF file.
        policy: policy file or directory; None reads unsteered.
        root: directory that files named by policies must lie in.
        options: of Runtime, such as ``n_ctx``.

    Raises:
        ScopeError: model and policy are not sound or do not fit.
    """

    def __init__(
        self,
        model: str | Path,
        policy: str | Path | None = None,
        *,
        root: str | Path | None = None,
        labels: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._runtime = Runtime(model, policy, policy_root=root, **options)
        self._labels = dict(labels or {})
        self.model = Path(model)

    @classmethod
    def of(cls, runtime: Runtime) -> Reader:
        """Reads with a runtime that is open, under whatever is in force there; closing it is its owner's."""
        reader = cls.__new__(cls)
        reader._runtime, reader._labels, reader.model = runtime, {}, runtime.model
        return reader

    def under(self, policy: str | Path | None) -> None:
        """Reads under another policy from here on; None: unsteered. Raises ScopeError; then the old one stays."""
        self._runtime.set_policy(policy)

    @property
    def digest(self) -> str:
        """``sha256:…`` of the model."""
        return self._runtime.model_digest

    def text(
        self,
        text: str | Sequence[Message] | Sequence[int],
        layers: Iterable[int],
        *,
        name: str = "text",
        chat: bool = False,
        n_prompt: int | None = None,
        n_next: int = N_NEXT,
    ) -> Reading:
        """Reads a text, messages, or token ids.

        Args:
            layers: 0-based blocks whose output is wanted, or `EMBEDDING`.
            chat: take the text as a user's message. Messages always take the template; where the last is the
                assistant's, the text ends with it as an answer that may go on.
            n_prompt: how many of its tokens are prompt, if the rest is an answer.

        Raises:
            UsageError: it has no tokens or too many, or the model has no such layer.
        """
        tokens, n_asked = self.tokens(text, chat=chat)
        n_prompt = n_asked if n_prompt is None else n_prompt
        observed, after = self._observe(tokens, layers, n_prompt, n_next)
        return Reading(
            name,
            observed.tokens,
            self.pieces(observed.tokens),
            n_prompt,
            observed.layers,
            after,
            tuple(tuple(map(self._said, each)) for each in observed.next),
            observed.program.revision if observed.program.rules else None,
        )

    def answer(
        self,
        prompt: str | Sequence[Message] | Sequence[int],
        layers: Iterable[int],
        *,
        max_tokens: int,
        name: str = "prompt",
        chat: bool = True,
        temperature: float = 0.0,
        seed: int | None = None,
        n_next: int = N_NEXT,
    ) -> Reading:
        """Reads a prompt and the model's own answer to it. Arguments and errors as in `text`."""
        asked, n_asked = self.tokens(prompt, chat=chat)
        answer = self._runtime.generate(
            asked,
            labels=self._labels,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        return self.text(
            [*asked, *answer.tokens],
            layers,
            name=name,
            n_prompt=n_asked or len(asked),
            n_next=n_next,
        )

    def logged(self, request: Logged, layers: Iterable[int], *, n_next: int = N_NEXT) -> Reading:
        """Reads the prompt of a logged request, and its answer where that was kept.

        Raises:
            UsageError: this is not the model that the request ran on.
        """
        if request.model != self.digest:
            raise UsageError(
                "this is not the model that the request ran on",
                location=Location(str(self.model)),
                found=self.digest,
                expected=request.model,
            )
        answer = request.output.tokens if request.output is not None else None
        return self.text(
            [*request.prompt, *(answer or ())],
            layers,
            name=f"request {request.request_id}",
            n_prompt=len(request.prompt),
            n_next=n_next,
        )

    def tokens(
        self, text: str | Sequence[Message] | Sequence[int], *, chat: bool = False
    ) -> tuple[list[int], int | None]:
        """Token ids as `text` reads them, and how many of them are prompt where the messages end with an answer."""
        if isinstance(text, str) and not chat:
            return self._runtime.tokenize(text), None
        if isinstance(text, str):
            return self._runtime.tokenize_chat(text), None
        ids = [each for each in text if isinstance(each, int)]
        if len(ids) == len(text):
            return ids, None
        messages = [each for each in text if not isinstance(each, int)]
        if messages[-1]["role"] != "assistant" or len(messages) == 1:
            return self._runtime.tokenize_chat(messages), None
        asked = self._runtime.tokenize_chat(messages[:-1])
        return asked + self._runtime.tokenize_answer(messages[-1]["content"]), len(asked)

    def pieces(self, tokens: Iterable[int]) -> tuple[str, ...]:
        """The text of each token; see `Reading.pieces`."""
        return decoded(self._runtime.piece(token) for token in tokens)

    def close(self) -> None:
        """Frees the model. Safe to call twice."""
        self._runtime.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _said(self, following: NextToken) -> Said:
        # A part of a character is no text: its bytes are shown.
        text = self._runtime.piece(following.token).decode(errors="backslashreplace")
        return Said(following.token, text, following.probability)

    def _observe(
        self, tokens: Sequence[int], layers: Iterable[int], n_prompt: int | None, n_next: int
    ) -> tuple[Observed, Mapping[int, F32Array]]:
        wanted = set(layers)
        # What the policy does at a layer depends on what it measured before: every layer of its own is needed.
        points = set(hook_points(self._runtime.program)) if self._runtime.program.rules else set()
        observed = self._runtime.observe(
            tokens, wanted | points, self._labels, n_prompt=n_prompt, n_next=n_next
        )
        after = changed(observed.program, observed)
        kept = {layer: h for layer, h in observed.layers.items() if layer in wanted}
        seen = Observed(observed.tokens, observed.n_prompt, kept, observed.next, observed.program)
        return seen, {layer: after.get(layer, h) for layer, h in kept.items()}


def changed(program: Program, observed: Observed) -> dict[int, F32Array]:
    """The residuals after a program's change, at the layers that it looks at.

    The native program runs once more, on the residuals that it had before: at each layer it sees what it saw then.

    Raises:
        UsageError: a part of the program is llama.cpp's control vector, whose change is not seen.
    """
    if program.control_vectors:
        raise UsageError(
            "on a GPU this policy adds by llama.cpp's control vector, and what that adds is not seen",
            hint="Read on the CPU: n_gpu_layers 0",
        )
    points = hook_points(program)
    if not points:
        return {}
    text = RecordedText(
        observed.tokens,
        {layer: observed.layers[layer] for layer in points},  # type: ignore[misc]
        observed.n_prompt,
    )
    done = replay(program, text, observed.n_prompt)
    return {
        # Where a rule ended the generation nothing was computed any more.
        layer: _extended(h, observed.layers[layer])
        for layer, h in done.residuals.items()
    }


def _extended(h: F32Array, whole: F32Array) -> F32Array:
    out = whole.copy()
    out[: len(h)] = h
    return out


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
    from scope_runtime.pack_types import layer_name

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
