"""``scope record``: residuals from a model into a recording, so that tests need no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    ContextOption,
    GpuLayersOption,
    JsonOption,
    ModelOption,
    RootOption,
    ThreadsOption,
)
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.llama.capture import TextResiduals


def record(
    model: ModelOption,
    prompts: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Prompts: .txt, one a line; .jsonl, one value a line."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="REC", help="The recording.")],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Layers, such as 3,17 or embedding.  [default: all, or --policy's]"
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-P", metavar="FILE", help="Record the layers that this needs."),
    ] = None,
    root: RootOption = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=0, help="Longest answer.")
    ] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take prompts as they are, without the chat template.")
    ] = False,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: ContextOption = 512,
    as_json: JsonOption = False,
) -> None:
    """Record what a model computes on prompts, for tests and comparisons that run without it.

    The model runs unsteered; with --max-tokens it answers each prompt greedily, and the answer is
    recorded after it. A token takes 2 bytes for each value and layer.

    \b
    Examples:
      scope record -m model.gguf --prompts prompts.txt -n 32 --policy p.yaml -o prompts.rec
      scope record -m model.gguf --prompts prompts.jsonl --layers 3,17 -o prompts.rec --json
    """
    if layers is not None and policy is not None:
        raise UsageError("--layers and --policy exclude each other")
    from converters.texts import read_texts
    from scope_runtime.cli.progress import loading
    from scope_runtime.llama.record import Prompt
    from scope_runtime.llama.record import record as run

    wanted = _layers(layers) if layers is not None else _needed(policy, root) if policy else None
    asked: list[Prompt] = [
        list(text.messages)
        if text.messages
        else text.text
        if raw
        else [{"role": "user", "content": text.text}]
        for text in read_texts(prompts)
    ]
    done: list[TextResiduals] = []
    with loading(f"recording {model.name}", quiet=as_json) as progress:

        def each(text: TextResiduals) -> None:
            done.append(text)
            progress(len(done) / len(asked))

        run(
            model,
            asked,
            out,
            layers=wanted,
            max_tokens=max_tokens,
            n_ctx=ctx,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            each=each,
        )
    _say(out, done, as_json=as_json)


def _layers(text: str) -> tuple[int, ...]:
    from scope_runtime.policy.model import EMBEDDING

    found = []
    for word in text.split(","):
        word = word.strip()
        if word == "embedding":
            found.append(EMBEDDING)
        elif word.isascii() and word.isdigit() and len(word) < 5:
            found.append(int(word))
        else:
            raise UsageError(
                "no layer", found=repr(word), expected="numbers and embedding, with commas between"
            )
    return tuple(found)


def _needed(policy: Path, root: Path | None) -> tuple[int, ...]:
    from scope_runtime.compile import check_against_packs
    from scope_runtime.policy.load import load_policy
    from scope_runtime.replay import hook_points

    points = hook_points(check_against_packs(load_policy(policy, root=root)))
    if not points:
        raise UsageError("the policy does nothing at any layer", found=str(policy))
    return points


def _say(out: Path, texts: list[TextResiduals], *, as_json: bool) -> None:
    from scope_runtime.pack_types import layer_name

    names = [layer_name(layer) for layer in sorted(texts[0].layers)]
    said: dict[str, Any] = {
        "path": str(out),
        "bytes": out.stat().st_size,
        "layers": names,
        "texts": [{"n_prompt": text.n_prompt, "n_tokens": len(text.tokens)} for text in texts],
    }
    if as_json:
        print(json.dumps(said, ensure_ascii=False))
        return
    n_tokens = sum(len(text.tokens) for text in texts)
    print(
        f"{out}: {said['bytes']:,} bytes, {len(texts)} texts, {n_tokens:,} tokens, "
        f"layers {', '.join(names)}"
    )
