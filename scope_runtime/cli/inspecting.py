"""What ``trace`` and ``compare`` share: their options, texts, and where pictures go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    ContextOption,
    GpuLayersOption,
    JsonOption,
    RootOption,
    ThreadsOption,
    parse_labels,
)
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


@dataclass(frozen=True, slots=True)
class Asking:
    """How texts are read."""

    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-P", metavar="FILE|DIR", help="Read under these policies."),
    ] = None
    root: RootOption = None
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", metavar="KEY=VALUE", help="A label of the request; may be repeated."
        ),
    ] = None
    generate: Annotated[
        int,
        typer.Option(
            "--generate", "-n", metavar="N", min=0, help="Let the model answer, at most N tokens."
        ),
    ] = 0
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="With --generate: take prompts as they are, without the template."
        ),
    ] = False
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")
    ] = 0.0
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, max=MAX_SEED, help="Of the draw."),
    ] = None
    n_gpu_layers: GpuLayersOption = 0
    threads: ThreadsOption = None
    ctx: ContextOption = 2048

    @contextmanager
    def reader(self, model: Path, *, quiet: bool) -> Iterator[Reader]:
        """The model, under the policy; closed at the end.

        Args:
            quiet: nothing is said of how the loading goes.
        """
        from scope_runtime.cli.progress import loading
        from scope_runtime.inspect.reader import Reader

        with (
            loading(f"loading {model.name}", quiet=quiet) as progress,
            Reader(
                model,
                self.policy,
                root=self.root,
                labels=parse_labels(self.labels or []),
                n_ctx=self.ctx,
                n_gpu_layers=self.n_gpu_layers,
                n_threads=self.threads,
                progress=progress,
            ) as reader,
        ):
            progress(1.0)
            yield reader

    def read(self, reader: Reader, text: Text, saes: SaeLayers, name: str) -> Reading:
        """A text as it is, or with an answer: then it is a prompt, and takes the chat template."""
        what: Any = list(text.messages) if text.messages else text.text
        if not self.generate:
            return reader.text(what, saes.layers, name=name)
        return reader.answer(
            what,
            saes.layers,
            max_tokens=self.generate,
            chat=not self.raw,
            temperature=self.temperature,
            seed=self.seed,
            name=name,
        )


@dataclass(frozen=True, slots=True)
class Output:
    """Where what was seen is shown."""

    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write one page that needs nothing else."),
    ] = None
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Also draw it. Needs matplotlib.")
    ] = None
    as_json: JsonOption = False

    def draw(self, picture: Picture) -> None:
        """Writes the files that were asked for."""
        if self.html is not None:
            from scope_runtime.inspect.page import write_page

            write_page(self.html, picture)
        if self.png is not None:
            from scope_runtime.inspect.drawing import write_png

            left = write_png(self.png, picture)
            if left:
                print(f"note: {self.png} has no room for the last {left:,} rows", file=sys.stderr)


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
