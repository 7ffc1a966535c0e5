"""Prompts, and answers to them, from a model into a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from scope_runtime.llama.capture import TextResiduals, capturing, check_layers, residuals
from scope_runtime.llama.chat import ChatTemplate, Message
from scope_runtime.llama.checks import model_digest
from scope_runtime.llama.context import Context
from scope_runtime.llama.sampler import Sampler
from scope_runtime.llama.sampling import Sampling
from scope_runtime.recording import write_recording

Prompt = str | Sequence[Message]
"""A raw text, or the messages of a conversation."""


def record(
    model: str | Path,
    prompts: Iterable[Prompt],
    out: str | Path,
    *,
    layers: Iterable[int] | None = None,
    max_tokens: int = 0,
    n_ctx: int = 512,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    progress: Callable[[float], None] | None = None,
    each: Callable[[TextResiduals], None] = lambda text: None,
) -> None:
    """Writes the unsteered residuals of prompts and of the model's own greedy answers to them.

    Args:
        model: GGUF file.
        prompts: raw texts (control tokens written out count as such) or conversations.
        out: the recording; written whole or not at all.
        layers: 0-based blocks, or `EMBEDDING`; every block by default.
        max_tokens: longest answer; 0 records the prompts alone.
        each: told each text as it is recorded.

    Raises:
        UsageError: a prompt with its answer does not fit the context, or there is no such layer.
        PackError: the recording cannot be written.
    """
    with capturing(
        model, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers, progress=progress
    ) as context:
        wanted = check_layers(context, range(context.shape.n_layer) if layers is None else layers)
        texts = _texts(context, prompts, wanted, max_tokens, each)
        write_recording(out, model_digest(Path(model)), texts)


def _texts(
    context: Context,
    prompts: Iterable[Prompt],
    layers: tuple[int, ...],
    max_tokens: int,
    each: Callable[[TextResiduals], None],
) -> Iterator[TextResiduals]:
    template = ChatTemplate.of(context)
    for prompt in prompts:
        tokens = (
            context.tokenize(prompt, special=True)
            if isinstance(prompt, str)
            else template.tokens(context, prompt)
        )
        n_prompt = len(tokens)
        if max_tokens and n_prompt < context.n_ctx:
            tokens += _answer(context, tokens, max_tokens)
        for read in residuals(context, [tokens], layers):
            text = replace(read, n_prompt=n_prompt)
            each(text)
            yield text


def _answer(context: Context, prompt: list[int], max_tokens: int) -> list[int]:
    """The greedy answer, as far as the context reaches; the end token is not among it."""
    answer: list[int] = []
    sampler = Sampler(context, Sampling(temperature=0.0))
    context.forget()
    try:
        context.decode(prompt, 0)
        while len(answer) < max_tokens and len(prompt) + len(answer) < context.n_ctx:
            token = sampler.next()
            if context.ends(token):
                break
            answer.append(token)
            context.decode([token], len(prompt) + len(answer) - 1)
    finally:
        sampler.close()
        context.forget()
    return answer
