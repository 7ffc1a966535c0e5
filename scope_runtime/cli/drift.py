"""``scope drift``: a baseline of what features do in requests, and later requests held against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scope_runtime.audit.query import parse_time
from scope_runtime.cli.audit_read import SinceOption, UntilOption
from scope_runtime.cli.options import JsonOption, RootOption, parse_labels
from scope_runtime.cli.spread import spread
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.drift import Baseline, Report
    from scope_runtime.drift.measure import Request

EXIT = {"stable": 0, "small": 0, "drift": 1, "insufficient": 3}

_WIDE = 100

app = typer.Typer(
    name="drift",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Say whether features do in live traffic what they did before.",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from: audit logs, or a recording that a policy is run on."""

    log: Annotated[
        list[Path] | None,
        typer.Option("--log", metavar="FILE|DIR", help="Audit log of the requests; repeatable."),
    ] = None
    recording: Annotated[
        Path | None,
        typer.Option(
            "--recording", "-r", metavar="REC", help="Or a recording; each text is a request."
        ),
    ] = None
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-P", metavar="FILE|DIR", help="What runs on the recording."),
    ] = None
    root: RootOption = None
    since: SinceOption = None
    until: UntilOption = None
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", "-l", metavar="KEY=VALUE", help="Only requests that have it; repeatable."
        ),
    ] = None

    @property
    def kind(self) -> str:
        """``log`` or ``recording``.

        Raises:
            UsageError: it is neither, or an option is for the other.
        """
        if bool(self.log) == (self.recording is not None):
            raise UsageError("give the requests as --log or as --recording")
        if (self.recording is None) != (self.policy is None):
            raise UsageError("--recording and --policy go together")
        if self.recording is not None and (self.since or self.until):
            raise UsageError("a recording has no times", hint="--since and --until are for --log")
        return "log" if self.log else "recording"

    def requests(
        self, labels: dict[str, str], rules: Sequence[str] = (), after: float | None = None
    ) -> Iterator[Request]:
        """The requests with these labels, measured by these rules or by all.

        Args:
            after: of a log the time from which on they count, if --since gives none.
        """
        if self.recording is not None and self.policy is not None:
            return _replayed(self.recording, self.policy, self.root, labels, rules)
        import time

        from scope_runtime.audit.segments import find_logs
        from scope_runtime.drift.sources import logged

        now = time.time()
        return logged(
            find_logs(self.log or []),
            labels=labels,
            since=parse_time(self.since, now) if self.since else after,
            until=parse_time(self.until, now) if self.until else None,
            rules=rules,
        )


@app.command("baseline")
@spread
def baseline(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The baseline.")],
    source: Source,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="NAME", help="Only this rule; repeatable.  [default: all]"),
    ] = None,
    most: Annotated[
        int,
        typer.Option(
            "--max-requests", metavar="N", min=20, max=100_000, help="Of more, evenly spread ones."
        ),
    ] = 2_000,
    as_json: JsonOption = False,
) -> None:
    """Keep what each rule measured in requests of a time that counts as normal.

    Every rule is taken whose features the requests' records measure: alerts, and what mutes, scales,
    clamps. Numbers are kept, no texts.

    \b
    Examples:
      scope drift baseline --log audit.jsonl --since 7d --labels tenant=acme -o baseline.json
      scope drift baseline --recording prompts.rec --policy policies -o baseline.json
    """
    from scope_runtime.drift.baseline import Baseline, thinned, write_baseline
    from scope_runtime.drift.measure import sample

    wanted, kind = parse_labels(source.labels or []), source.kind
    whole = sample(source.requests(wanted, rule or []))
    made = Baseline(thinned(whole, most), kind, wanted)
    write_baseline(out, made)
    counts = {each.name: made.sample.count(each) for each in made.sample.measured}
    if as_json:
        said = {"path": str(out), "requests": len(made.sample.times), "rules": counts}
        print(json.dumps(said | {"of": len(whole.times)}, ensure_ascii=False))
        return
    n, n_found = len(made.sample.times), len(whole.times)
    print(f"{out}: {n:,} requests{f' of {n_found:,}' if n < n_found else ''}, {len(counts)} rules")
    for name, count in counts.items():
        print(f"  {name}: in {count:,} of them")


@app.command("report")
@spread
def report(
    against: Annotated[
        Path, typer.Option("--baseline", "-b", metavar="FILE", help="What to compare with.")
    ],
    source: Source,
    last: Annotated[
        int | None, typer.Option("--last", metavar="N", min=1, help="Only the newest N requests.")
    ] = None,
    min_requests: Annotated[
        int, typer.Option("--min-requests", metavar="N", help="With fewer, nothing is judged.")
    ] = 100,
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            "--false-alarm-rate",
            metavar="P",
            help="Chance that a report names any rule while nothing changed.",
        ),
    ] = 0.01,
    psi: Annotated[
        float, typer.Option("--psi", metavar="X", help="From this index on a difference matters.")
    ] = 0.1,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw it: .png, .svg, .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold requests against a baseline, rule by rule: firing rate, mean and max activation.

    Without --since, requests of a log count from the baseline's end on; without --labels, those that
    the baseline was made of. Exit codes: 0 no drift, 1 drift (or something given is invalid), 2 wrong
    usage, 3 no drift seen, but for a rule there are too few requests to say.

    \b
    Examples:
      scope drift report --baseline baseline.json --log audit.jsonl --last 500
      scope drift report -b baseline.json --log audit.jsonl --since 24h --plot drift.png
      scope drift report -b baseline.json --recording prompts.rec --policy policies --json
    """
    from scope_runtime.drift.baseline import read_baseline
    from scope_runtime.drift.compare import Criteria, compare
    from scope_runtime.drift.measure import sample
    from scope_runtime.drift.report import report_data

    criteria = Criteria(min_requests, false_alarm_rate, psi)
    kind = source.kind
    base = read_baseline(against)
    after = _end(base) if base.source == "log" else None
    wanted = parse_labels(source.labels) if source.labels else dict(base.labels)
    # Of a recording every text counts, whatever labels the baseline's requests had.
    found = source.requests(wanted if kind == "log" else {}, after=after)
    requests = sorted(found, key=lambda request: request.time)
    window = sample(requests[-last:] if last else requests)
    notes = list(base.notes if kind == "log" else ())
    if base.source == kind == "log" and len(window.times) and window.times[0] < _end(base):
        notes.append(
            "window and baseline overlap in time: they are alike because they are the same"
        )
    done = compare(base.sample, window, criteria, notes=notes)
    if plot is not None:
        from scope_runtime.drift.plot import plot as draw

        draw(plot, done, base.sample, window)
    if as_json:
        print(json.dumps(report_data(done), ensure_ascii=False))
    else:
        _print(done)
    code = EXIT[str(done.verdict)]
    if code:
        raise typer.Exit(code)


def _end(base: Baseline) -> float:
    """Just after the last request; the file's times are rounded to milliseconds."""
    return float(base.sample.times[-1]) + 0.001


def _replayed(
    recording: Path,
    policy: Path,
    root: Path | None,
    labels: dict[str, str],
    rules: Sequence[str],
) -> Iterator[Request]:
    from scope_runtime.compile import check_against_packs
    from scope_runtime.drift.sources import replayed
    from scope_runtime.merge import merged
    from scope_runtime.policy.load import load_policies
    from scope_runtime.recording import read_recording

    if labels:
        raise UsageError("a recording has no labels", hint="--labels is for --log")
    program = check_against_packs(merged(load_policies(policy, root=root)))
    return replayed(read_recording(recording), program, rules)


def _print(done: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scope_runtime.drift.report import bars
    from scope_runtime.visible import visible

    console = Console(highlight=False, markup=False)
    wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule", overflow="fold")
    for title in ("requests", "firing rate", "mean", "max", "PSI", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    if wide:
        table.add_column("bins", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    styles = {"drift": "bold red", "small": "yellow", "insufficient": "yellow"}
    for finding in done.findings:
        worst = finding.worst
        table.add_row(
            Text(visible(finding.rule.name)),
            f"{finding.n_baseline}→{finding.n_window}",
            *(f"{each.baseline:.3g}→{each.window:.3g}" for each in finding.measures),
            *([""] * (3 - len(finding.measures))),
            "" if worst is None else f"{worst.psi:.2f} {worst.name}",
            "" if worst is None else f"{worst.p:.2g}",
            *(["" if worst is None else bars(worst.stability)] if wide else []),
            Text(str(finding.verdict), style=styles.get(str(finding.verdict), "")),
        )
    console.print(table)
    for note in done.notes:
        console.print(f"note: {visible(note)}", soft_wrap=True)
    criteria = done.criteria
    console.print(
        f"{done.verdict}: {done.n_window} requests against {done.n_baseline}. While nothing changes, at most "
        f"{criteria.false_alarm_rate:.2%} of such reports name any rule; a rule counts from PSI {criteria.psi:g} "
        f"and {criteria.min_requests} requests on.",
        soft_wrap=True,
    )
