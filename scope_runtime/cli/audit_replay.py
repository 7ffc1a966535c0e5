"""``scope audit replay``: a logged request run again, under its policies and under others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    GpuLayersOption,
    JsonOption,
    ModelOption,
    RootOption,
    ThreadsOption,
)
from scope_runtime.errors import AuditError, Location, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from scope_runtime.audit.logged import Figures
    from scope_runtime.rerun import Answered, Rerun, RuleChange, Where

NOT_REPRODUCED = 1


def replay(
    model: ModelOption,
    log: Annotated[
        Path, typer.Option("--log", "-l", metavar="FILE", help="The audit log, or where it lies.")
    ],
    record: Annotated[
        int | None, typer.Argument(min=0, help="The index of a record of the request.")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="Or the request's id.")
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option(
            "--policies", "-P", metavar="FILE|DIR", help="The policies that it ran under."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Or a state directory that keeps them, by the revision on record.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="R", help="The revision that must be on record."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="FILE|DIR|R",
            help="Run it under these policies too: files, a revision in --state, or none.",
        ),
    ] = None,
    root: RootOption = None,
    grammar: Annotated[
        Path | None,
        typer.Option("--grammar", metavar="FILE", help="The GBNF that the answer had to follow."),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx", "-c", metavar="N", min=8, help="Context size.  [default: what it needs]"
        ),
    ] = None,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a logged request again, and say what is different.

    The policy must have kept its prompt (spec.audit). Model, packs and policies must be those on
    record; with --against the request runs under other policies too, and both runs are compared.
    Exit code 0: the answer is reproduced, or the log cannot tell; 1: it is another answer.

    \b
    Examples:
      scope audit replay --request r1 --log audit.jsonl -m model.gguf --policies policies
      scope audit replay 17 --log audit.jsonl -m model.gguf --state state --against policies/new.yaml
    """
    if (record is None) == (request is None):
        raise UsageError("say which request", expected="a record's index, or --request ID")
    if policies is not None and state is not None and revision is None and against is None:
        raise UsageError("--policies and --state name the same thing twice")
    from scope_runtime.audit.logged import logged_request
    from scope_runtime.audit.segments import find_logs
    from scope_runtime.rerun import Replay, Where

    [files] = find_logs([log])
    logged = logged_request(files, request_id=request, index=record)
    on_record = logged.revisions[-1][0] if logged.revisions else None
    if revision is not None and revision != on_record:
        raise UsageError("the record bears another revision", found=on_record, expected=revision)
    recorded = Where(policies, root, None if policies else state, on_record)
    run = Replay(
        model,
        recorded,
        _against(against, root, state),
        grammar=_read(grammar) if grammar is not None else "",
        n_ctx=ctx,
        n_threads=threads,
        n_gpu_layers=n_gpu_layers,
    )
    done = run.run(logged)
    if as_json:
        typer.echo(json.dumps(rerun_data(done), ensure_ascii=False))
    else:
        _print(done)
    if done.reproduced is False:
        raise typer.Exit(NOT_REPRODUCED)


def _against(named: str | None, root: Path | None, state: Path | None) -> Where | None:
    from scope_runtime.rerun import NONE, Where

    if named is None:
        return None
    if named == NONE:
        return Where()
    if named.startswith("sha256:"):
        if state is None:
            raise UsageError("a revision is looked for in a state directory", hint="Give --state")
        return Where(state=state, revision=named)
    return Where(Path(named), root)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError("cannot be read", location=Location(str(path)), found=str(error)) from None


def rerun_data(done: Rerun) -> dict[str, Any]:
    """A replay as JSON-ready data."""
    logged = done.logged
    then: dict[str, Any] | None = None
    if logged.output is not None and logged.output.tokens is not None:
        then = {"tokens": list(logged.output.tokens), "text": logged.output.text}
    data: dict[str, Any] = {
        "request_id": logged.request_id,
        "record": logged.index,
        "model": logged.model,
        "sampling": dict(logged.sampling),
        "reproduced": done.reproduced,
        "first_difference": done.first_difference,
        "logged": then,
        "replayed": _answered(done.replayed),
        "rules": _changes(done.rules),
        "notes": list(done.notes),
    }
    if done.against is not None:
        data["against"] = _answered(done.against) | {
            "first_difference": done.against_difference,
            "rules": _changes(done.against_rules),
        }
    return data


def _answered(answer: Answered) -> dict[str, Any]:
    return {
        "revision": answer.revision,
        "tokens": list(answer.tokens),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
    }


def _changes(rules: Iterable[RuleChange]) -> list[dict[str, Any]]:
    return [
        {
            "policy": each.policy or None,
            "rule": each.rule,
            "same": each.same,
            "before": asdict(each.before) if each.before else None,
            "after": asdict(each.after) if each.after else None,
        }
        for each in rules
    ]


def _print(done: Rerun) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(f"request {done.logged.request_id}, record {done.logged.index}", soft_wrap=True)
    console.print(_verdict(done), soft_wrap=True)
    for note in done.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(_rules(done.rules, "log", "replay"))
    kept = done.logged.output.text if done.logged.output is not None else None
    if kept is not None and not done.reproduced:
        console.print(_texts("log", kept, "replay", done.replayed.text))
    if done.against is None:
        if kept is None or done.reproduced:
            console.print(_texts("replay", done.replayed.text))
        return
    same = "the same answer" if done.against_difference is None else None
    console.print(
        f"under {_short(done.against.revision)}: "
        f"{same or f'another answer from token {done.against_difference} on'}",
        soft_wrap=True,
    )
    console.print(_rules(done.against_rules, _short(done.replayed.revision), "against"))
    console.print(
        _texts(_short(done.replayed.revision), done.replayed.text, "against", done.against.text)
    )


def _verdict(done: Rerun) -> str:
    under = _short(done.replayed.revision)
    if done.reproduced is None:
        return f"under {under}: the log does not say what was answered"
    if done.reproduced:
        return f"under {under}: reproduced, all {len(done.replayed.tokens)} tokens"
    if done.first_difference is None:
        return f"under {under}: not the answer that the log commits to"
    return f"under {under}: not reproduced, another token at {done.first_difference} of the answer"


def _short(revision: str) -> str:
    return revision.removeprefix("sha256:")[:12]


def _rules(rules: Iterable[RuleChange], before: str, after: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule")
    for title in ("", "acted on", "activation max", "mean", "dose max", "mean", "alerts"):
        table.add_column(title, justify="right" if title else "left")
    for each in rules:
        name = f"{each.policy}/{each.rule}" if each.policy else each.rule
        style = "" if each.same else "yellow"
        table.add_row(
            Text(name), before if not each.same else "same", *_cells(each.before), style=style
        )
        if not each.same:
            table.add_row("", after, *_cells(each.after), style=style)
    return table


def _cells(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["no part"] + [""] * 5
    numbers = (
        figures.activation_max,
        figures.activation_mean,
        figures.dose_max,
        figures.dose_mean,
    )
    shown = ["" if each is None else f"{each:.4g}" for each in numbers]
    return [f"{figures.n_fired} of {figures.n_tokens}", *shown, str(len(figures.alerts) or "")]


def _texts(*pairs: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    from scope_runtime.visible import visible

    table = Table(expand=True, pad_edge=False)
    for title in pairs[::2]:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*(Text(visible(text)) for text in pairs[1::2]))
    return table
