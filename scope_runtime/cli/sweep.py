"""``scope sweep``: how strong a rule should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import ContextOption, JsonOption, RootOption, ThreadsOption
from scope_runtime.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from converters.texts import Text
    from scope_runtime.cases.model import Case
    from scope_runtime.inspect.prepare import Collateral
    from scope_runtime.inspect.sweep import Measured, Sweep

NOTHING = 3
_WIDE = 100


def sweep(
    policy: Annotated[
        Path, typer.Option("--policy", "-P", metavar="FILE", help="The policy with the rule.")
    ],
    target: Annotated[
        Path,
        typer.Option(metavar="CASES", help="Cases that hold when the rule does its work (.yaml)."),
    ],
    collateral: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What it should leave alone: texts, cases (.yaml) or a recording; repeatable.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="The model, unless all is recorded."),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which rule, if several have a strength.")
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What to try, such as 0.25,0.5,1.  [default: shares of a mute or of alpha]",
        ),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(
            "--sae", metavar="SAE_DIR[:LAYERS]", help="Whole layers: random and other features."
        ),
    ] = None,
    positive: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts with the behaviour, for their mean difference"),
    ] = None,
    negative: Annotated[
        Path | None, typer.Option(metavar="FILE", help="from texts without it.")
    ] = None,
    max_perplexity: Annotated[
        float,
        typer.Option("--max-perplexity", metavar="X", help="Largest ratio on collateral texts."),
    ] = 1.05,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it: .png, .svg, .pdf.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the proposed strength into the policy.")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of random features and bootstrap.")
    ] = 0,
    root: RootOption = None,
    threads: ThreadsOption = None,
    ctx: ContextOption = 1024,
    as_json: JsonOption = False,
) -> None:
    """Measure a rule at several strengths, and propose one.

    Effect is the share of target cases that hold. Cost is the perplexity of collateral texts (of a
    conversation its last answer), the share of collateral cases that still hold, and how far other
    features shift. Beside the policy stand random features of the same layers and the mean difference
    of two kinds of texts, both at the policy's own dose. Strength is the alpha of an amplification; of
    mute and scale it is the share of the activation that is taken away. Proposed is the least strength
    within 5 points of the best effect that the limits allow, with the interval of 95 % of bootstrap
    draws. Exit codes: 0 proposed, 1 something given is invalid, 2 wrong usage, 3 nothing to propose.

    \b
    Examples:
      scope sweep -P p.yaml --target p.test.yaml --collateral texts.jsonl -m model.gguf --plot s.png
      scope sweep -P p.yaml --target p.test.yaml --collateral texts.txt -m model.gguf --sae sae/
      scope sweep -P p.yaml --target recorded.test.yaml --collateral texts.rec --write
    """
    from converters.texts import read_texts
    from scope_runtime.cases.load import load_test
    from scope_runtime.cli.progress import reporting
    from scope_runtime.inspect.prepare import Contrast
    from scope_runtime.inspect.propose import Limits
    from scope_runtime.inspect.sweep import sweep as run
    from scope_runtime.sae import SaeLayers

    if (positive is None) != (negative is None):
        raise UsageError("--positive and --negative go together")
    if not max_perplexity >= 1:
        raise UsageError("no limit", found=f"{max_perplexity:g}", expected="1 or more")
    contrast = None
    if positive is not None and negative is not None:
        contrast = Contrast(read_texts(positive), read_texts(negative))
    given = _strengths(strengths) if strengths is not None else None
    with reporting(quiet=as_json) as report:
        done = run(
            policy,
            load_test(target, root=root),
            _collateral(collateral or [], root),
            model=model,
            rule=rule,
            strengths=given,
            saes=SaeLayers.open(sae) if sae is not None else None,
            contrast=contrast,
            limits=Limits(perplexity=max_perplexity),
            root=root,
            n_ctx=ctx,
            n_threads=threads,
            seed=seed,
            report=report,
        )
    if plot is not None:
        from scope_runtime.inspect.sweep_plot import plot as draw

        draw(plot, done)
    proposed = done.proposal.strength
    if write and proposed is not None:
        _write(policy, done.rule, proposed)
    if as_json:
        print(json.dumps(_data(done, written=write and proposed is not None), ensure_ascii=False))
    else:
        _print(done)
        if write and proposed is not None:
            print(f"{policy}: written")
    if proposed is None:
        raise typer.Exit(NOTHING)


def _strengths(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(
            "no strengths", found=repr(text), expected="numbers with commas between"
        ) from None


def _collateral(paths: list[Path], root: Path | None) -> Collateral:
    from converters.texts import read_texts
    from scope_runtime.cases.load import load_test
    from scope_runtime.inspect.prepare import Collateral
    from scope_runtime.recording import read_recording

    texts: list[Text] = []
    cases: list[Case] = []
    recording = None
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            cases += load_test(path, root=root).cases
        elif path.suffix == ".rec":
            if recording is not None:
                raise UsageError("one recording is enough", found=str(path))
            recording = read_recording(path)
        else:
            texts += read_texts(path)
    return Collateral(tuple(texts), tuple(cases), recording)


def _write(path: Path, rule: str, strength: float) -> None:
    """Into the file's place whole, with its mode; a link stays a link."""
    from scope_runtime.files import written_whole
    from scope_runtime.inspect.strength import with_strength
    from scope_runtime.policy.yaml12 import decode

    target = path.resolve()
    after = with_strength(decode(target.read_bytes(), str(path)), str(path), rule, strength)
    with written_whole(target, PolicyError) as temporary:
        temporary.write_text(after, encoding="utf-8", newline="\n")
        temporary.chmod(target.stat().st_mode & 0o7777)


def _data(done: Sweep, *, written: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(done), "written": written}


def _print(done: Sweep) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    rows = [row for each in done.arms.values() for row in each]
    columns = [
        column
        for column in _columns(wide=console.width >= _WIDE)
        if any(column[1](row) for row in rows)
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for number, (name, measured) in enumerate(done.arms.items()):
        for row in measured:
            proposed = not number and row.strength and row.strength == done.proposal.strength
            cells = [cell(row) for _, cell in columns]
            shown = name if row is measured[0] else ""
            table.add_row(shown, *cells, style="bold" if proposed else None)
    console.print(table)
    for note in done.notes:
        console.print(f"note: {note}")
    console.print(_verdict(done), style="bold")


def _columns(*, wide: bool) -> list[tuple[str, Callable[[Measured], str]]]:
    def between(interval: tuple[float, float] | None, form: str) -> str:
        if interval is None or not wide:
            return ""
        return f" ({interval[0]:{form}} to {interval[1]:{form}})"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    return [
        ("strength", lambda row: f"{row.strength:g}"),
        ("effect", lambda row: f"{row.effect:.0%}" + between(row.effect_interval, ".0%")),
        (
            "perplexity",
            lambda row: number(row.perplexity, ".3f") + between(row.perplexity_interval, ".3f"),
        ),
        ("cases", lambda row: number(row.cases, ".0%")),
        ("shift", lambda row: number(row.shift, ".3f")),
        ("dose", lambda row: number(row.dose, ".3f")),
    ]


def _verdict(done: Sweep) -> str:
    proposal = done.proposal
    if proposal.strength is None or proposal.effect is None:
        return (
            f"{done.rule}: nothing to propose: within the limits no strength holds more of the "
            f"{done.n_cases} target cases than none at all"
        )
    within = "" if proposal.low is None else f" ({proposal.low:g} to {proposal.high:g})"
    return (
        f"{done.rule}: strength {proposal.strength:g}{within}, where {proposal.effect[0]:.0%} of "
        f"{done.n_cases} target cases hold; it is {done.own:g} in the policy"
    )
