"""Options that several commands share, and what they mean."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from scope_runtime.errors import UsageError

ModelOption = Annotated[
    Path,
    typer.Option(
        "--model", "-m", metavar="FILE", help="The model: a GGUF file that llama.cpp can run."
    ),
]
GpuLayersOption = Annotated[
    int,
    typer.Option(
        "--n-gpu-layers", metavar="N", min=-1, help="Blocks to offload to the GPU; -1 is all."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", metavar="N", min=1, max=512, help="CPU threads.  [default: llama.cpp's]"
    ),
]
ContextOption = Annotated[
    int, typer.Option("--ctx", "-c", metavar="N", min=8, help="Context size in tokens.")
]
AnswerContextOption = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        "-c",
        metavar="N",
        min=8,
        help="Tokens of context, for each answer.  [default: the model's, at most 4096]",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Directory that the policies' files may lie in; else each policy's own.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, errors included.")
]


def parse_labels(pairs: list[str]) -> dict[str, str]:
    """``["tenant=acme"]`` as a mapping.

    Raises:
        UsageError: a pair without a key, or a key given twice.
    """
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError("a label is not a pair", found=repr(pair), expected="key=value")
        if key in labels:
            raise UsageError(f"the label {key} is given twice", found=repr(pair))
        labels[key] = value
    return labels


Kind = TypeVar("Kind", bound=Enum)


def one_of(word: str, option: str, kinds: type[Kind]) -> Kind:
    """The member that a word names.

    Raises:
        UsageError: none.
    """
    try:
        return kinds(word)
    except ValueError:
        expected = ", ".join(str(each) for each in kinds)
        raise UsageError(f"{option} is none", found=repr(word), expected=expected) from None
