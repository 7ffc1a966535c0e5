"""``scope trace``: which features a text lights up, token by token, and where each was lit first."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.inspecting import Asking, Output, SaeOption, opened, texts_of
from scope_runtime.cli.spread import spread
from scope_runtime.errors import Location, UsageError

if TYPE_CHECKING:
    from scope_runtime.inspect.reader import Reader
    from scope_runtime.inspect.reading import Reading
    from scope_runtime.inspect.trace import Trace
    from scope_runtime.recording import Recording
    from scope_runtime.sae import SaeLayers


@spread
def trace(
    *,
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
    asking: Asking,
    output: Output,
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
    if asking.generate and (request is not None or recording is not None):
        raise UsageError("--generate is for --text and --file")
    if recording is not None and asking.policy is not None:
        raise UsageError("a recording is of an unsteered model", hint="Leave --policy out")
    if recording is None and model is None:
        raise UsageError("no model is given", hint="Give --model FILE")
    from scope_runtime.recording import read_recording

    saes = opened(sae, model)
    record = read_recording(recording) if recording is not None else None
    with ExitStack() as stack:
        reader = None
        if model is not None:
            reader = stack.enter_context(asking.reader(model, quiet=output.as_json))
        if record is not None:
            readings = _recorded(record, saes, reader)
        elif reader is None:
            raise UsageError("no model is given", hint="Give --model FILE")
        elif request is not None and log is not None:
            readings = [_logged(reader, log, request, saes)]
        else:
            readings = [
                asking.read(reader, each, saes, f"text {n}" if file else "text")
                for n, each in enumerate(texts_of(text, file))
            ]
    from scope_runtime.inspect.trace import trace as run

    traces = [run(each, saes, features=features, top=top, above=above) for each in readings]
    _say(traces, output, chosen=features is not None)


def _recorded(found: Recording, saes: SaeLayers, reader: Reader | None) -> list[Reading]:
    from scope_runtime.inspect.reading import recorded

    if reader is None:
        return list(recorded(found, saes.layers))
    if reader.digest != f"sha256:{found.model}":
        raise UsageError(
            "the recording is of another model",
            location=Location(found.path),
            found=f"sha256:{found.model}",
            expected=reader.digest,
        )
    return list(recorded(found, saes.layers, reader.pieces))


def _logged(reader: Reader, log: Path, request: str, saes: SaeLayers) -> Reading:
    from scope_runtime.audit.logged import logged_request
    from scope_runtime.audit.segments import find_logs

    [files] = find_logs([log])
    return reader.logged(logged_request(files, request_id=request), saes.layers)


def _say(traces: list[Trace], output: Output, *, chosen: bool) -> None:
    from scope_runtime.inspect.heat import trace_picture

    picture = trace_picture(traces)
    output.draw(picture)
    if output.as_json:
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
