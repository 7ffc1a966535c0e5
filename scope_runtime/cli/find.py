"""``scope find``: which features a behaviour hangs on, from texts that show it and texts that do not."""

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
    ThreadsOption,
    one_of,
)
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.text import Text as RichText

    from scope_runtime.inspect import Found, FoundFeature, Snippet, TokenInContext

NOTHING = 3


def find(
    model: ModelOption,
    sae: Annotated[
        str,
        typer.Option(
            "--sae", metavar="SAE_DIR[:LAYERS]", help="Whole SAE layers: published, or a pack's."
        ),
    ],
    positive: Annotated[
        Path | None,
        typer.Option("--positive", metavar="FILE", help="Texts that show the behaviour."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option("--like", metavar="TEXT", help="Or such a text itself; may be repeated."),
    ] = None,
    negative: Annotated[
        Path | None,
        typer.Option(
            "--negative",
            metavar="FILE",
            help="Texts that do not, alike otherwise.  [default: the model makes some up]",
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="max|mean|last",
            help="What counts of a text: its strongest token, the mean, or its last token.",
        ),
    ] = "max",
    chat: Annotated[
        bool, typer.Option("--chat", help="Plain texts are users' messages; the answer is next.")
    ] = False,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            metavar="N",
            min=0,
            help="The texts are prompts; N tokens of answer count.",
        ),
    ] = 0,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="REGEX", help="Cut answers where this begins, others alike."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-n", metavar="N", min=1, help="Groups of features to show.")
    ] = 5,
    candidates: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1000, help="Features that one half may choose."),
    ] = 20,
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            "--false-alarm-rate",
            metavar="P",
            help="Chance that any feature is called significant where there is nothing.",
        ),
    ] = 0.01,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", min=0, help="Of halves, permutations, the model's texts."
        ),
    ] = 0,
    write_policy: Annotated[
        Path | None,
        typer.Option("--write-policy", metavar="FILE", help="Write a policy to start from."),
    ] = None,
    rule: Annotated[
        str,
        typer.Option("--rule", metavar="mute|amplify|alert", help="What that policy does."),
    ] = "mute",
    take: Annotated[
        int,
        typer.Option("--take", metavar="N", min=1, help="Groups of features that it acts on."),
    ] = 1,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: ContextOption = 1024,
    as_json: JsonOption = False,
) -> None:
    """Find the features that tell texts with a behaviour from texts without it.

    Every latent of the SAE is measured at every token. Each half of the texts chooses candidates;
    AUROC, effect size and significance come from the other half, and with --at last the push: how
    much of what the texts go on with runs through the feature. Features that fire together or point
    the same way are one group. Without --negative the texts are held against what the model says
    when nobody asks: then whatever they have in common is found, their topic and form as well.

    Texts: .txt, one a line; .jsonl, a string, {"text": …} or {"messages": […]} a line; a
    conversation may stop inside an answer, and with --at last it counts what the model is about to
    do there. Exit codes: 0 found, 1 something given is invalid, 2 wrong usage, 3 nothing is
    significant.

    \b
    Examples:
      scope find -m model.gguf --sae sae/ --positive yes.txt --negative no.txt
      scope find -m model.gguf --sae sae/:16-20 --positive yes.jsonl --negative no.jsonl --at last
      scope find -m model.gguf --sae sae/ --positive yes.txt --negative no.txt --write-policy p.yaml
      scope find -m m.gguf --sae sae/ --positive ask.txt --negative no.txt --generate 96 --until "我"
      scope find -m model.gguf --sae sae/ --like "Verily, …" --like "Lo, …" --at mean
    """
    from converters.texts import Text, read_texts
    from scope_runtime.cli.progress import reporting
    from scope_runtime.inspect import Answers, Criteria, Pool, RuleKind, snippet, taken
    from scope_runtime.inspect import find as run
    from scope_runtime.inspect.snippet import write_policy as write
    from scope_runtime.llama.checks import check_model
    from scope_runtime.sae import SaeLayers

    where, kind = one_of(at, "--at", Pool), one_of(rule, "--rule", RuleKind)
    if not 0 < false_alarm_rate < 1:
        raise UsageError("no rate", found=f"{false_alarm_rate:g}", expected="between 0 and 1")
    if write_policy is not None and write_policy.exists():
        raise UsageError("the policy is there already", found=str(write_policy))
    if (positive is None) == (not like):
        raise UsageError("say what to look for", expected="--positive FILE, or --like TEXT")
    if until is not None and not generate:
        raise UsageError("--until is for answers", hint="Give --generate N")
    if generate and negative is None:
        raise UsageError("--generate needs --negative", hint="Give prompts that do not show it")
    yes = read_texts(positive) if positive is not None else tuple(map(Text, like or []))
    no = None if negative is None else read_texts(negative)
    saes = SaeLayers.open(sae)
    with reporting(quiet=as_json) as report:
        found = run(
            model,
            saes,
            yes,
            no,
            at=where,
            chat=chat,
            answers=Answers(generate, until) if generate else None,
            criteria=Criteria(candidates, false_alarm_rate, seed=seed),
            n_ctx=ctx,
            n_threads=threads,
            n_gpu_layers=n_gpu_layers,
            report=report,
        )
    chosen = taken(found, take)
    made = None
    if chosen:
        target = write_policy or Path("found.yaml")
        made = snippet(chosen, saes, check_model(model), target, kind)
        if write_policy is not None:
            write(made, write_policy)
    if as_json:
        print(json.dumps(_data(found, made, write_policy), ensure_ascii=False))
    else:
        _print(found, made, write_policy, top)
    if not found.ranking.significant:
        raise typer.Exit(NOTHING)


def _data(found: Found, made: Snippet | None, written: Path | None) -> dict[str, Any]:
    from scope_runtime.inspect.found_data import found_data

    return {
        **found_data(found),
        "policy": made and made.policy,
        "policy_file": str(written) if written else None,
        "pack_command": made and made.shell,
    }


def _print(found: Found, made: Snippet | None, written: Path | None, top: int) -> None:
    from rich.console import Console

    from scope_runtime.inspect.found_data import verdict

    console = Console(highlight=False, markup=False)
    ranking = found.ranking
    console.print(
        f"{found.n_positive} positive and {found.n_negative} "
        f"{'texts of the model itself' if found.own else 'negative texts'}; of {found.n_latents:,} "
        f"latents {ranking.n_features:,} are active in three texts or more",
        style="dim",
    )
    console.print(verdict(found), style="bold" if ranking.significant else "bold yellow")
    if not found.features:
        return
    console.print()
    console.print(_table(found, top))
    for number, group in enumerate(found.groups[:top], 1):
        console.print()
        for line in _details(number, group[0]):
            console.print(line, soft_wrap=False)
    for note in found.notes:
        console.print(f"note: {note}")
    if made is None:
        return
    console.print()
    if made.shell is not None:
        console.print("a pack of these features:", style="bold")
        console.print(f"  {made.shell}", soft_wrap=True)
    if written is not None:
        console.print(f"{written}: written; it expects {made.pack}")
    else:
        console.print("a policy to start from (--write-policy FILE writes it):", style="bold")
        console.print(made.policy.rstrip("\n"), soft_wrap=True)


def _table(found: Found, top: int) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    for title, justify in (
        ("feature", "left"),
        ("AUROC", "right"),
        ("effect", "right"),
        ("push", "right"),
        ("p", "right"),
        ("fires +", "right"),
        ("fires -", "right"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("label", overflow="fold")
    for number, group in enumerate(found.groups[:top], 1):
        for place, each in enumerate(group):
            rank = each.rank
            table.add_row(
                "" if place else str(number),
                each.name,
                f"{rank.auroc:.2f}",
                f"{rank.effect:.1f}",
                "" if rank.push is None else f"{rank.push:.0%}",
                "" if rank.p is None else f"{rank.p:.2g}",
                f"{rank.fires[0]:.0%}",
                f"{rank.fires[1]:.0%}",
                each.label,
                style=None if found.is_significant(each) else "dim",
            )
    return table


def _details(number: int, feature: FoundFeature) -> Iterable[RichText]:
    from rich.text import Text

    from scope_runtime.visible import visible

    yield Text.assemble((f"{number}. {feature.name}", "bold"), f"  {visible(feature.label)}")
    for word, pushes in (("more", feature.favours), ("less", feature.disfavours)):
        if pushes:
            words = "  ".join(visible(push.text.strip()) for push in pushes)
            yield Text.assemble((f"   {word} likely  ", "dim"), words)
    for context in feature.contexts:
        yield _context(context)


def _context(context: TokenInContext) -> RichText:
    from rich.text import Text

    from scope_runtime.visible import visible

    def flat(text: str) -> str:
        return visible(text.replace("\n", "↵"))

    return Text.assemble(
        ("   + " if context.positive else "   - ", "green" if context.positive else "red"),
        (f"{context.activation:8.2f}  ", "dim"),
        flat(context.before),
        (flat(context.token), "bold reverse"),
        flat(context.after),
    )
