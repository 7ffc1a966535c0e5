"""A model that reads texts, unsteered or under a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from scope_runtime.audit.logged import Logged
from scope_runtime.errors import Location, UsageError
from scope_runtime.inspect.reading import Reading, Said, decoded
from scope_runtime.inspect.texts import parted
from scope_runtime.llama.chat import Message
from scope_runtime.llama.observe import NextToken, Observed
from scope_runtime.pack_types import F32Array
from scope_runtime.program import Program
from scope_runtime.recording import RecordedText
from scope_runtime.replay import hook_points, replay
from scope_runtime.runtime import Runtime

N_NEXT = 5
"""So many next tokens are listed with each token."""


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
        if not isinstance(text, str):
            ids = [each for each in text if isinstance(each, int)]
            if len(ids) == len(text):
                return ids, None
        said = text if isinstance(text, str) else [m for m in text if not isinstance(m, int)]
        prompt, answer = parted(self._runtime, said, chat=chat)
        return prompt + answer, len(prompt) if answer else None

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
