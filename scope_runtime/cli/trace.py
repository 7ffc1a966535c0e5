"""``scope trace``: which features a text lights up, token by token, and where each was lit first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.inspecting import (
    Asking,
    GenerateOption,
    HtmlOption,
    LabelsOption,
    PngOption,
    PolicyOption,
    RawOption,
    SaeOption,
    SeedOption,
    TemperatureOption,
    draw,
    opened,
    texts_of,
)
from scope_runtime.cli.options import (
    ContextOption,
    GpuLayersOption,
    JsonOption,
    RootOption,
    ThreadsOption,
    parse_labels,
)
from scope_runtime.errors import Location, UsageError

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader
    from scope_runtime.inspect.reading import Reading
    from scope_runtime.inspect.trace import Trace
    from scope_runtime.sae import SaeLayers


def trace(
    sae: SaeOption,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="The model; not for --recording."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="A text; - reads stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="Texts: .txt, one a line; or .jsonl."),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(
            "--request", metavar="ID", help="A logged request, of which prompts were kept."
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="The audit log of --request.")
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option("--recording", "-r", metavar="REC", help="Recorded residuals (scope record)."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features", metavar="LIST", help="These over the tokens: 20:6159,811 or labels."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, help="Strongest features of each token.")
    ] = 5,
    above: Annotated[
        float, typer.Option("--above", metavar="X", min=0.0, help="A feature is lit above this.")
    ] = 0.0,
    generate: GenerateOption = 0,
    policy: PolicyOption = None,
    root: RootOption = None,
    labels: LabelsOption = None,
    raw: RawOption = False,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    html: HtmlOption = None,
    png: PngOption = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: ContextOption = 2048,
    as_json: JsonOption = False,
) -> None:
    """Show which features a text lights up, where each is lit first, and what comes next there.

    Activations are those before a policy's change. With --generate a text is a prompt; without it
    is read as it stands.

    \b
    Examples:
      scope trace -m model.gguf --sae sae/:20 --text "…" --top 3
      scope trace -m model.gguf --sae sae/:20 --text "…" --generate 64 --features 6159,811
      scope trace -m model.gguf --sae pack.gguf --request r1 --log audit.jsonl --html request.html
    """
    given = {"--text": text, "--file": file, "--request": request, "--recording": recording}
    if sum(each is not None for each in given.values()) != 1:
        raise UsageError("say what to trace", expected=f"one of {', '.join(given)}")
    if (request is None) != (log is None):
        raise UsageError("--request and --log go together")
    if generate and (request is not None or recording is not None):
        raise UsageError("--generate is for --text and --file")
    if recording is not None and policy is not None:
        raise UsageError("a recording is of an unsteered model", hint="Leave --policy out")
    if recording is None and model is None:
        raise UsageError("no model is given", hint="Give --model FILE")
    saes = opened(sae, model)

    @contextmanager
    def reading() -> Iterator[Reader]:
        from scope_runtime.cli.progress import loading
        from scope_runtime.inspect.reader import Reader

        if model is None:
            raise UsageError("no model is given", hint="Give --model FILE")
        with (
            loading(f"loading {model.name}", quiet=as_json) as progress,
            Reader(
                model,
                policy,
                root=root,
                labels=parse_labels(labels or []),
                n_ctx=ctx,
                n_gpu_layers=n_gpu_layers,
                n_threads=threads,
                progress=progress,
            ) as reader,
        ):
            progress(1.0)
            yield reader

    if recording is not None:
        readings = _recorded(recording, saes, reading if model is not None else None)
    else:
        asking = Asking(generate, raw, temperature, seed)
        with reading() as reader:
            if request is not None and log is not None:
                readings = [_logged(reader, log, request, saes)]
            else:
                texts = texts_of(text, file)
                readings = [
                    asking.read(reader, each, saes, f"text {n}" if file else "text")
                    for n, each in enumerate(texts)
                ]
    from scope_runtime.inspect.trace import trace as run

    traces = [run(each, saes, features=features, top=top, above=above) for each in readings]
    _say(traces, html, png, chosen=features is not None, as_json=as_json)


def _recorded(path: Path, saes: SaeLayers, reading: object) -> list[Reading]:
    from scope_runtime.inspect.reading import recorded
    from scope_runtime.recording import read_recording

    found = read_recording(path)
    if reading is None:
        return list(recorded(found, saes.layers))
    with reading() as reader:  # type: ignore[operator]
        if reader.digest != f"sha256:{found.model}":
            raise UsageError(
                "the recording is of another model",
                location=Location(str(path)),
                found=f"sha256:{found.model}",
                expected=reader.digest,
            )
        return list(recorded(found, saes.layers, reader.pieces))


def _logged(reader: Reader, log: Path, request: str, saes: SaeLayers) -> Reading:
    from scope_runtime.audit.logged import logged_request
    from scope_runtime.audit.segments import find_logs

    [files] = find_logs([log])
    return reader.logged(logged_request(files, request_id=request), saes.layers)


def _say(
    traces: list[Trace], html: Path | None, png: Path | None, *, chosen: bool, as_json: bool
) -> None:
    from scope_runtime.inspect.heat import trace_picture

    picture = trace_picture(traces)
    draw(picture, html, png)
    if as_json:
        from scope_runtime.inspect.data import trace_data

        print(json.dumps({"texts": [trace_data(each) for each in traces]}, ensure_ascii=False))
        return
    from rich.console import Console

    from scope_runtime.cli.heat import print_picture, print_strongest

    console = Console(highlight=False, markup=False)
    if chosen:
        print_picture(picture, console)
        return
    for each in traces:
        print_strongest(each, console)
