"""``scope bench``: what a policy costs on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    AnswerContextOption,
    GpuLayersOption,
    JsonOption,
    RootOption,
    ThreadsOption,
    parse_labels,
)
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.bench import Arm
    from scope_runtime.bench_served import ServedArm
    from scope_runtime.paired import Ratio


def bench(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="FILE", help="The model: a GGUF file that llama.cpp can run."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-P", metavar="FILE", help="The policy, or a directory."),
    ] = None,
    root: RootOption = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="A running endpoint instead, up to /v1."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="Key of the requests to --url."),
    ] = None,
    off_api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--off-api-key-file", metavar="FILE", help="Key of the arm off, that no policy selects."
        ),
    ] = None,
    clients: Annotated[
        int, typer.Option("--clients", metavar="N", min=1, help="Clients that ask --url at once.")
    ] = 8,
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="Requests of each arm to --url.")
    ] = 160,
    prompt_tokens: Annotated[
        int,
        typer.Option(
            "--prompt-tokens", metavar="N", min=2, help="Length of each prompt; words at --url."
        ),
    ] = 256,
    answer_tokens: Annotated[
        int,
        typer.Option(
            "--answer-tokens",
            metavar="N",
            min=2,
            help="Length of each answer; at --url the longest, others from half of it on.",
        ),
    ] = 64,
    rounds: Annotated[
        int, typer.Option("--rounds", "-r", metavar="N", min=2, help="Rounds of all arms.")
    ] = 10,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", metavar="KEY=VALUE", help="A label of the steered requests; repeatable."
        ),
    ] = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: AnswerContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a policy costs, on and off, in turns, in one run.

    "off again" is measured like "on" but without the policy: its ratio to "off" is what this
    machine's noise alone does, and no smaller difference means anything. With --model, ratios are of
    the time a token takes, medians over rounds with a 95 % interval.

    With --url, clients put a load on a running endpoint: tokens a second of all of them together,
    time to the first token and from one to the next. "on" asks with --api-key-file and --labels, "off"
    with --off-api-key-file or without the labels; with neither there is one arm, and no ratio.

    \b
    Examples:
      scope bench -m model.gguf -P policies/english-only.yaml
      scope bench -m model.gguf -P policies --labels tenant=acme --rounds 40 --json
      scope bench --url http://127.0.0.1:8080/v1 --api-key-file acme.key --labels team=travel
    """
    if (url is None) == (model is None):
        raise UsageError("bench measures a model or an endpoint", hint="Give --model or --url")
    if url is not None:
        if policy is not None:
            raise UsageError(
                "an endpoint has its own policies", hint="Leave out --policy; see --labels"
            )
        _served(
            url,
            api_key_file,
            off_api_key_file,
            parse_labels(labels or []),
            (clients, requests, prompt_tokens, answer_tokens, rounds),
            as_json,
        )
        return
    if model is None or policy is None:
        raise UsageError("no policy is given", hint="Give --policy FILE")
    if api_key_file is not None or off_api_key_file is not None:
        raise UsageError("keys are for an endpoint", hint="Leave them out, or give --url")
    _embedded(
        model,
        policy,
        root,
        (prompt_tokens, answer_tokens, rounds),
        parse_labels(labels or []),
        {"n_ctx": ctx, "n_gpu_layers": n_gpu_layers, "n_threads": threads},
        as_json,
    )


def _embedded(
    model: Path,
    policy: Path,
    root: Path | None,
    sizes: tuple[int, int, int],
    labels: dict[str, str],
    context: dict[str, Any],
    as_json: bool,
) -> None:
    from scope_runtime.bench import Plan, measure
    from scope_runtime.cli.progress import loading
    from scope_runtime.runtime import Runtime

    plan = Plan(*sizes)
    with (
        loading(f"loading {model.name}", quiet=as_json) as progress,
        Runtime(model, policy_root=root, progress=progress, **context) as runtime,
    ):
        progress(1.0)
        with loading("measuring", quiet=as_json) as progress:
            arms = measure(runtime, policy, plan, labels=labels, progress=progress)
    if as_json:
        print(json.dumps({"plan": asdict(plan), "arms": [asdict(arm) for arm in arms]}))
        return
    _print(arms)


def _served(
    url: str,
    key: Path | None,
    off_key: Path | None,
    labels: dict[str, str],
    sizes: tuple[int, int, int, int, int],
    as_json: bool,
) -> None:
    from scope_runtime.bench import AGAIN, OFF, ON
    from scope_runtime.bench_served import Load, Way, load
    from scope_runtime.cli.progress import loading

    plan = Load(*sizes)
    mine = _bearer(key)
    on = {**mine, "x-scope-labels": ",".join(f"{k}={v}" for k, v in labels.items())}
    off = _bearer(off_key) if off_key is not None else mine
    if labels or off_key is not None:
        ways = [Way(OFF, url, (off,)), Way(AGAIN, url, (off,)), Way(ON, url, (on,))]
    else:
        ways = [Way("load", url, (mine,))]
    with loading("measuring", quiet=as_json) as progress:
        arms = load(ways, plan, progress=progress)
    if as_json:
        print(json.dumps({"load": asdict(plan), "arms": [asdict(arm) for arm in arms]}))
        return
    _print_served(arms)


def _bearer(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the key cannot be read", found=f"{file}: {error}") from None
    if not key.isascii() or not key.isprintable():
        raise UsageError("the file holds no key", found=str(file))
    return {"authorization": f"Bearer {key}"}


def _print_served(arms: tuple[ServedArm, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = ("arm", "rules", "tok/s", "first ms", "p99", "between ms", "p99")
    table = Table(*heads, box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for arm in arms:
        table.add_row(
            arm.name,
            ", ".join(map(str, arm.interventions)),
            f"{arm.tokens_per_s:.1f}",
            f"{arm.first_token_ms.p50:.1f}",
            f"{arm.first_token_ms.p99:.1f}",
            f"{arm.between_ms.p50:.2f}",
            f"{arm.between_ms.p99:.2f}",
        )
    console = Console()
    console.print(table)
    for arm in arms:
        if arm.throughput_ratio is not None:
            console.print(
                f"{arm.name} to off: tok/s {_words(arm.throughput_ratio)}, "
                f"first ms {_words(arm.first_token_p50_ratio)}, "
                f"between ms p99 {_words(arm.between_p99_ratio)}"
            )
    for arm in arms:
        if arm.n_failed:
            console.print(
                f"{arm.name}: {arm.n_failed} of {arm.n_requests} failed: {arm.failure}",
                markup=False,
            )


def _print(arms: tuple[Arm, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", "prompt tok/s", "ratio", "answer tok/s", "ratio", box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for arm in arms:
        table.add_row(
            arm.name,
            f"{arm.prompt_tokens_per_s:.1f}",
            _words(arm.prompt_ratio),
            f"{arm.decode_tokens_per_s:.1f}",
            _words(arm.decode_ratio),
        )
    Console().print(table)


def _words(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f} ({ratio.lower:.3f} to {ratio.upper:.3f})"
