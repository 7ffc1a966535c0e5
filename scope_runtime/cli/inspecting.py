"""What ``trace`` and ``compare`` share: their options, texts, and where pictures go."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.errors import UsageError
from scope_runtime.types import MAX_SEED

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.inspect.heat import Picture
    from scope_runtime.inspect.reader import Reader
    from scope_runtime.inspect.reading import Reading
    from scope_runtime.sae import SaeLayers

SaeOption = Annotated[
    str,
    typer.Option(
        "--sae",
        "-s",
        metavar="SAE[:LAYERS]",
        help="Published SAE or a pack with whole encoders; layers as 3, 0-3 or 1,5,embedding.",
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", "-P", metavar="FILE|DIR", help="Read under these policies."),
]
GenerateOption = Annotated[
    int,
    typer.Option(
        "--generate", "-n", metavar="N", min=0, help="Let the model answer, at most N tokens."
    ),
]
RawOption = Annotated[
    bool,
    typer.Option("--raw", help="With --generate: take prompts as they are, without the template."),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", min=0, max=MAX_SEED, help="Of the draw."),
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels", "-l", metavar="KEY=VALUE", help="A label of the request; may be repeated."
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also write one page that needs nothing else."),
]
PngOption = Annotated[
    Path | None, typer.Option("--png", metavar="FILE", help="Also draw it. Needs matplotlib.")
]


@dataclass(frozen=True, slots=True)
class Asking:
    """How texts are read."""

    max_tokens: int
    raw: bool
    temperature: float
    seed: int | None

    def read(self, reader: Reader, text: Text, saes: SaeLayers, name: str) -> Reading:
        """A text as it is, or with an answer: then it is a prompt, and takes the chat template."""
        what: Any = list(text.messages) if text.messages else text.text
        if not self.max_tokens:
            return reader.text(what, saes.layers, name=name)
        return reader.answer(
            what,
            saes.layers,
            max_tokens=self.max_tokens,
            chat=not self.raw,
            temperature=self.temperature,
            seed=self.seed,
            name=name,
        )


def opened(spec: str, model: Path | None) -> SaeLayers:
    """The SAEs, held against the model before it is loaded."""
    from scope_runtime.llama.checks import check_model
    from scope_runtime.sae import SaeLayers

    saes = SaeLayers.open(spec)
    if model is not None:
        saes.check_fits(check_model(model))
    return saes


def texts_of(text: str | None, file: Path | None) -> list[Text]:
    """What was given as a text (``-``: stdin) or as a file of texts."""
    from converters.texts import Text, read_texts

    if file is not None:
        return list(read_texts(file))
    said = sys.stdin.read().rstrip("\n") if text == "-" else text
    if not said:
        raise UsageError("the text is empty", hint="Give a text, or - and the text on stdin")
    return [Text(said)]


def draw(picture: Picture, html: Path | None, png: Path | None) -> None:
    """Writes the files that were asked for."""
    if html is not None:
        from scope_runtime.inspect.page import write_page

        write_page(html, picture)
    if png is not None:
        from scope_runtime.inspect.drawing import write_png

        left = write_png(png, picture)
        if left:
            print(f"note: {png} has no room for the last {left:,} rows", file=sys.stderr)
