"""``scope bench``: what a policy costs on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.cli.options import (
    AnswerContextOption,
    GpuLayersOption,
    JsonOption,
    ModelOption,
    RootOption,
    ThreadsOption,
    parse_labels,
)

if TYPE_CHECKING:
    from scope_runtime.bench import Arm
    from scope_runtime.paired import Ratio


def bench(
    model: ModelOption,
    policy: Annotated[
        Path, typer.Option("--policy", "-P", metavar="FILE", help="The policy, or a directory.")
    ],
    root: RootOption = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=2, help="Length of each prompt.")
    ] = 256,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", metavar="N", min=2, help="Length of each answer.")
    ] = 64,
    rounds: Annotated[
        int, typer.Option("--rounds", "-r", metavar="N", min=2, help="Rounds of all arms.")
    ] = 10,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", metavar="KEY=VALUE", help="A label of the requests; repeatable."),
    ] = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: AnswerContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens a second with a policy on and off, in turns, in one run.

    "off again" is measured like "on" but without the policy: its ratio to "off" is what this
    machine's noise alone does, and no smaller difference means anything. Ratios are of the time a
    token takes, medians over rounds with a 95 % interval.

    \b
    Examples:
      scope bench -m model.gguf -P policies/english-only.yaml
      scope bench -m model.gguf -P policies --labels tenant=acme --rounds 40 --json
    """
    from scope_runtime.bench import Plan, measure
    from scope_runtime.cli.progress import loading
    from scope_runtime.runtime import Runtime

    plan = Plan(prompt_tokens, answer_tokens, rounds)
    with (
        loading(f"loading {model.name}", quiet=as_json) as progress,
        Runtime(
            model,
            policy_root=root,
            n_ctx=ctx,
            n_gpu_layers=n_gpu_layers,
            n_threads=threads,
            progress=progress,
        ) as runtime,
    ):
        progress(1.0)
        with loading("measuring", quiet=as_json) as progress:
            arms = measure(
                runtime, policy, plan, labels=parse_labels(labels or []), progress=progress
            )
    if as_json:
        print(json.dumps({"plan": asdict(plan), "arms": [asdict(arm) for arm in arms]}))
        return
    _print(arms)


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
