"""What a finished generation has to say: as data for ``--json``, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scope_runtime.visible import visible

if TYPE_CHECKING:
    from scope_runtime.events import Event
    from scope_runtime.llama.engine import Generation
    from scope_runtime.program import Program

FINISH = {
    "stop": "the model ended its answer",
    "length": "the answer reached its limit",
    "abort": "ended by an alert or the dose limit",
    "cancelled": "cancelled",
}


def generation_data(answer: Generation) -> dict[str, Any]:
    """A generation as JSON-ready data."""
    return {
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "request_id": answer.request_id,
        "n_prompt": answer.n_prompt,
        "n_reused": answer.n_reused,
        "revisions": [
            {"revision": span.revision, "from_position": span.from_position}
            for span in answer.revisions
        ],
        "report": [event.record() for event in answer.report],
    }


def print_side_by_side(unsteered: Generation, steered: Generation, program: Program) -> None:
    """Both answers in two columns on stdout."""
    table = Table(expand=True, show_lines=False, pad_edge=False)
    table.add_column("unsteered", ratio=1, overflow="fold")
    table.add_column(f"under {program.policy}", ratio=1, overflow="fold")
    table.add_row(Text(visible(unsteered.text)), Text(visible(steered.text)))
    Console().print(table)


def print_report(answer: Generation, program: Program) -> None:
    """What each rule did, on stderr."""
    console = Console(stderr=True, highlight=False, markup=False)
    name = program.policy or "no policy"
    revision = program.revision.removeprefix("sha256:")[:12]
    console.print(
        f"{name} ({revision}): {answer.n_prompt} prompt tokens, {len(answer.tokens)} answer tokens, "
        f"{FINISH.get(answer.finish_reason, answer.finish_reason)}",
        style="dim",
        soft_wrap=True,
    )
    rules = [event for event in answer.report if event.what == "rule"]
    unmeasured = [rule for rule in program.rules if rule.plane != "callback"]
    if rules or unmeasured:
        console.print(_rules_table(rules, [(rule.name, str(rule.op)) for rule in unmeasured]))
    left_out = answer.report[-1].detail.get("left_out", {}) if answer.report else {}
    for rule, why in left_out.items():
        console.print(f"not for this request: {rule} ({why})", soft_wrap=True)
    for line in _alerts(answer.report):
        console.print(line, soft_wrap=True)
    for note in program.notes:
        console.print(f"note: {note}", style="dim", soft_wrap=True)


def _rules_table(rules: Iterable[Event], unmeasured: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule")
    table.add_column("does")
    for title in ("tokens", "activation max", "mean", "dose max", "mean"):
        table.add_column(title, justify="right")
    table.add_column("")
    for event in rules:
        detail = event.detail
        activation, dose = detail["activation"], detail["dose"]
        remarks = []
        if event.mode == "audit":
            remarks.append("audit: nothing was changed")
        if detail["n_limited"]:
            remarks.append(f"dose limit acted at {detail['n_limited']} tokens")
        table.add_row(
            event.rule,
            event.op,
            f"{detail['n_fired']} of {detail['n_tokens']}",
            _number(activation["max"]),
            _number(activation["mean"]),
            *(("", "") if event.op == "alert" else (_number(dose["max"]), _number(dose["mean"]))),
            ", ".join(remarks),
        )
    for name, op in unmeasured:
        table.add_row(name, op, "", "", "", "", "", "control vector: every token, not measured")
    return table


def _alerts(report: Iterable[Event]) -> Iterable[str]:
    """One line per alert, in the order in which they happened."""
    for event in report:
        detail: Mapping[str, Any] = event.detail
        if event.what == "firing":
            found = _number(detail["activation"]["max"])
            severity = detail.get("severity", "info")
            yield f"alert: {event.rule} ({severity}) at position {detail['position']}, activation {found}"
        elif event.what == "resolved":
            yield f"alert: {event.rule} resolved at position {detail['position']}"
        elif event.what == "dose-excess":
            yield f"dose limit: first acted at position {detail['position']}, asked {detail['dose']['max']}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
