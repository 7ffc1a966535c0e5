"""``scope compare``: which features differ between texts, answers, models, or with and without a policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.inspecting import Asking, Output, SaeOption, opened, texts_of
from scope_runtime.cli.options import ModelOption, one_of
from scope_runtime.cli.spread import spread
from scope_runtime.errors import Location, UsageError

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.inspect.compare import Comparison
    from scope_runtime.inspect.reader import Reader
    from scope_runtime.inspect.reading import Reading
    from scope_runtime.sae import SaeLayers


@spread
def compare(
    *,
    sae: SaeOption,
    model: ModelOption,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[A [B]]", help="One or two texts.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Or one or two files of texts: .txt or .jsonl."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Another model that reads the same tokens."),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="mean|max|last",
            help="What counts of a text: the mean, its strongest token, or its last token.",
        ),
    ] = "mean",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Features to list.")] = 10,
    alpha: Annotated[
        float,
        typer.Option(
            "--false-alarm-rate",
            metavar="P",
            help="Chance of naming any feature while nothing differs.",
        ),
    ] = 0.05,
    asking: Asking,
    output: Output,
) -> None:
    """Say which features differ, and which one spiked, and where.

    Two texts or files are compared with each other. One is compared with itself: read by the model
    --against, or without and with --policy. With --generate, and of conversations that end with an
    answer, the answers are compared. Residuals are those that a policy left.

    \b
    Examples:
      scope compare "…" "…" -m model.gguf --sae sae/:20
      scope compare --file english.txt --file chinese.txt -m model.gguf --sae sae/:20 --html page.html
      scope compare --file prompts.txt -m model-f16.gguf --against model-q4.gguf --sae sae/
      scope compare --file prompts.txt -m model.gguf --policy p.yaml --generate 64 --sae sae/
    """
    from scope_runtime.inspect.sample import Pool

    counted = one_of(at, "--at", Pool)
    samples = _samples(texts or [], file or [])
    if len(samples) == 2 and against is not None:
        raise UsageError("--against takes one text or file", found="two")
    if len(samples) == 1 and (against is None) == (asking.policy is None):
        raise UsageError(
            "there is nothing to compare the text with",
            expected="a second text, or one of --against MODEL and --policy FILE",
        )
    saes = opened(sae, model)
    if against is not None:
        opened(sae, against)
    from scope_runtime.inspect.compare import compare as run
    from scope_runtime.inspect.compare import gathered

    with asking.reader(model, quiet=output.as_json) as reader:
        a = gathered(_read(asking, reader, samples[0].texts, saes), saes)
        names = (model.stem, against.stem) if against is not None else (samples[0].name, "")
        if len(samples) == 2:
            names = (samples[0].name, samples[1].name)
            b = gathered(_read(asking, reader, samples[1].texts, saes), saes)
        elif against is None:
            names, b = ("unsteered", "steered"), a
            reader.under(None)
            a = gathered(_read(asking, reader, samples[0].texts, saes), saes)
    if against is not None:
        with asking.reader(against, quiet=output.as_json) as reader:
            b = gathered((_again(reader, one, saes) for one in a.readings), saes)
    found = run(
        a,
        b,
        saes,
        names=names,
        paired=len(samples) == 1,
        answers=all(each.has_answer for each in (*a.readings, *b.readings)),
        at=counted,
        alpha=alpha,
        top=top,
    )
    _say(found, output)


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts under one name."""

    name: str
    texts: list[Text]


def _samples(texts: list[str], files: list[Path]) -> list[Sample]:
    if bool(texts) == bool(files) or len(texts) + len(files) > 2:
        raise UsageError("say what to compare", expected="one or two texts, or one or two --file")
    if texts:
        return [Sample("AB"[i], texts_of(text, None)) for i, text in enumerate(texts)]
    stems = [path.stem for path in files]
    stems = stems if len(set(stems)) == len(stems) else [str(path) for path in files]
    return [Sample(stem, texts_of(None, path)) for stem, path in zip(stems, files, strict=True)]


def _read(asking: Asking, reader: Reader, texts: list[Text], saes: SaeLayers) -> Iterator[Reading]:
    return (asking.read(reader, text, saes, f"text {n}") for n, text in enumerate(texts))


def _again(reader: Reader, read: Reading, saes: SaeLayers) -> Reading:
    """The same tokens, read by another model."""
    if reader.pieces(read.tokens) != read.pieces:
        raise UsageError(
            "the models do not have the same tokens, so one cannot read the other's",
            location=Location(str(reader.model)),
        )
    return reader.text(read.tokens, saes.layers, name=read.name, n_prompt=read.n_prompt)


def _say(found: Comparison, output: Output) -> None:
    from scope_runtime.inspect.heat import comparison_picture

    picture = comparison_picture(found)
    output.draw(picture)
    if output.as_json:
        from scope_runtime.inspect.data import comparison_data

        print(json.dumps(comparison_data(found), ensure_ascii=False))
        return
    from rich.console import Console

    from scope_runtime.cli.heat import print_picture

    print_picture(picture, Console(highlight=False, markup=False))
