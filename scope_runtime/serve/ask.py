"""What the gateway and an engine say to each other: embedded llama.cpp and a llama-server look alike from here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from scope_runtime.events import Event, RevisionSpan
from scope_runtime.llama.answer import Piece
from scope_runtime.llama.embedding import Vector
from scope_runtime.llama.sampling import Sampling
from scope_runtime.policy.model import Mode, Policy
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted: a request for ``n`` answers to ``m`` prompts is n·m of these.

    Attributes:
        prompt: raw text or token ids; None where there are ``messages``.
        messages: of a chat, role and content, for the model's template.
        labels: of the request, for selection.
        request_id: under which it is on record.
        passed: parameters that the engine said it ``takes`` itself, as the client sent them.
        trial: policies that this answer alone is under, which ``Engine.compile`` made.
    """

    prompt: str | tuple[int, ...] | None
    messages: tuple[Mapping[str, Any], ...] | None
    sampling: Sampling
    labels: Mapping[str, str]
    request_id: str
    passed: Mapping[str, Any] = field(default_factory=dict)
    trial: ProgramSource | None = None


@dataclass(frozen=True, slots=True)
class Began:
    """The prompt is computed.

    Attributes:
        revision: of the first position.
        interventions: rules that may change this answer.
    """

    revision: str
    interventions: int


@dataclass(frozen=True, slots=True)
class Extra:
    """Something of a chat's answer that is no text of it, as OpenAI's ``delta`` has it: ``tool_calls``, reasoning."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer.

    ``finish_reason`` is the engine's: ``stop``, ``length``, ``tool_calls``, ``abort`` or ``cancelled``.
    """

    finish_reason: str
    revisions: tuple[RevisionSpan, ...]
    report: tuple[Event, ...]
    n_prompt: int
    n_reused: int
    n_answer: int


Item = Began | Piece | Extra | Done


def changing(program: Program) -> int:
    """Rules of a program that may change the residual."""
    return sum(1 for rule in program.rules if rule.mode is Mode.ENFORCE and rule.alert is None)


@dataclass(frozen=True, slots=True)
class Reads:
    """How an engine shows what is inside the model while it reads a text.

    Attributes:
        model: the GGUF file.
        words: what a person should know of it; empty where there is nothing to say.
        why_not: why it does not read; None: it does.
    """

    model: Path
    words: str = ""
    why_not: str | None = None


class Engine(Protocol):
    """Where answers are computed.

    Attributes:
        slots: answers that it computes side by side; the gateway never asks for more at once.
        takes: parameters beyond ``Sampling`` that it carries out itself (``tools``, …); others are refused.
    """

    slots: int
    takes: frozenset[str]

    def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """Yields Began, then pieces, then Done. Closing it ends the answer, and waits until its place is free.

        Raises:
            UsageError: what was asked cannot be (a prompt that does not fit, a grammar that cannot be read).
            ScopeError: the engine failed.
        """

    def compile(self, policies: Sequence[Policy]) -> ProgramSource:
        """Policies as ``Ask.trial`` takes them. Raises ScopeError where they cannot be carried out."""

    @property
    def reads(self) -> Reads:
        """How it reads texts. Opens nothing."""

    def reading(self) -> AbstractContextManager[Reader]:
        """Reads texts under what is in force, beside answers or between them.

        Raises:
            ScopeError: it does not read, as ``reads`` says, or cannot.
        """

    async def close(self) -> None:
        """Frees everything."""


@dataclass(frozen=True, slots=True)
class AskVectors:
    """Embeddings that are wanted: one of each text, all in one place of the queue.

    Attributes:
        texts: raw text or token ids.
        request_ids: under which each is on record.
    """

    texts: tuple[str | tuple[int, ...], ...]
    labels: Mapping[str, str]
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextVector:
    """One text's embedding, (n_embd,) of length 1. ``done.finish_reason`` is ``stop``, or ``abort`` without one."""

    vector: Vector
    began: Began
    done: Done


@runtime_checkable
class Embeds(Protocol):
    """An engine that computes embeddings, too."""

    def embed(self, ask: AskVectors) -> AsyncGenerator[TextVector, None]:
        """Yields one for each text, in their order. Closing it ends it, and waits until its place is free.

        Raises:
            UsageError: what was asked cannot be (a text that does not fit, no embeddings on this server).
            ScopeError: the engine failed.
        """
