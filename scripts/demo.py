"""``make demo``: the main job, on the model that ships with the repository.

Shows the same questions unsteered and under a policy, an amplified style, a refusal alert; then measures
on held-out questions what each policy does, beside control arms. Everything printed was just computed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "tiny-qwen3"
OUT = ROOT / "demo-out"
AUDIT = OUT / "audit.jsonl"
sys.path.insert(0, str(EXAMPLE))

import corpus  # noqa: E402  (lies beside the example model, not in the package)
import evaluate  # noqa: E402

from scope_runtime import Runtime, ScopeError  # noqa: E402

CJK_STYLE = "bold red"


def marked(text: str) -> Text:
    """The text, Chinese characters standing out."""
    out = Text(text, overflow="fold")
    out.highlight_regex(corpus.CJK, CJK_STYLE)
    return out


def side_by_side(console: Console, question: str, left: Text, right: Text, name: str) -> None:
    """One question, two answers."""
    width = (console.width - 2) // 2
    console.print(Text.assemble(("> ", "bold cyan"), (question, "bold")))
    console.print(
        Columns(
            [
                Panel(left, title="unsteered", title_align="left", width=width, border_style="dim"),
                Panel(right, title=name, title_align="left", width=width, border_style="green"),
            ],
            padding=(0, 1),
        )
    )


def compare(
    console: Console, runtime: Runtime, policy: Path, kind: str, count: int, *, skip: int = 0
) -> None:
    """The same held-out questions without and with a policy, on one loaded model."""
    examples = evaluate.heldout(kind, skip + count)[skip:]
    pairs = []
    for source in (None, policy):
        runtime.set_policy(source)
        pairs.append(
            [runtime.chat(e.messages(), max_tokens=120, temperature=0.0) for e in examples]
        )
    for example, plain, steered in zip(examples, *pairs, strict=True):
        side_by_side(
            console, example.question, marked(plain.text), marked(steered.text), policy.name
        )
    rules = [e for e in pairs[1][-1].report if e.what == "rule"]
    for event in rules:
        console.print(
            f"  last answer, rule {event.rule}: acted at {event.detail['n_fired']} of "
            f"{event.detail['n_tokens']} tokens, dose mean {event.detail['dose']['mean']}, "
            f"max {event.detail['dose']['max']}",
            style="dim",
        )


def show_alert(console: Console, runtime: Runtime, policy: Path) -> None:
    """One question that is refused and one that is not, and what the alert says."""
    runtime.set_policy(policy)
    for example in (evaluate.heldout("harm", 1)[0], evaluate.heldout("english", 1)[0]):
        answer = runtime.chat(example.messages(), max_tokens=120, temperature=0.0)
        fired = [e for e in answer.report if e.what == "firing"]
        verdict = (
            Text(
                f"ALERT {fired[0].rule}: activation {fired[0].detail['activation']['max']} at "
                f"position {fired[0].detail['position']}, severity {fired[0].detail['severity']}",
                style="bold yellow",
            )
            if fired
            else Text("no alert", style="dim")
        )
        console.print(Text.assemble(("> ", "bold cyan"), (example.question, "bold")))
        console.print(
            Panel(
                Group(Text(answer.text), verdict),
                title=policy.name,
                title_align="left",
                border_style="yellow" if fired else "dim",
            )
        )


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=60, help="held-out prompts of each kind")
    parser.add_argument("--full", action="store_true", help="all of them, and the F16 model too")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    OUT.mkdir(exist_ok=True)
    for old in OUT.glob(f"{AUDIT.stem}.*"):
        old.unlink()  # the log shown at the end is of this run alone
    model = evaluate.MODELS["shipped"]
    policies = evaluate.POLICIES
    console.rule(f"[bold]Scope Runtime on {model.name}")
    with (
        console.status(f"loading {model.name}"),
        Runtime(model, audit=AUDIT, n_ctx=evaluate.N_CTX, n_threads=1) as runtime,
    ):
        console.rule("1. Mute features: answers stay in English", align="left")
        compare(console, runtime, policies / "english-only.yaml", "fault", 2)
        console.rule("2. Amplify a feature: an archaic style nobody asked for", align="left")
        compare(console, runtime, policies / "archaic-style.yaml", "english", 1)
        console.rule("3. Watch a feature: an alert when the model refuses", align="left")
        show_alert(console, runtime, policies / "refusal-watch.yaml")

    console.rule("4. Measured on held-out questions", align="left")
    for name in evaluate.MODELS if args.full else ("shipped",):
        path = evaluate.MODELS[name]
        found = evaluate.measure(path, 10_000 if args.full else args.prompts, console)
        for table in evaluate.tables(found, f"{path.name}, {found.prompts} prompts of each kind"):
            console.print(table)
    console.print(evaluate.TARGETS, style="dim")
    console.rule("Where to look", align="left")
    shown = AUDIT.relative_to(ROOT)
    console.print(
        f"audit log    {shown} ({len(AUDIT.read_text().splitlines())} events, JSON lines)"
    )
    console.print("edit         policies/english-only.yaml, then ask for yourself:")
    console.print(
        f"  .venv/bin/scope run -m {model.relative_to(ROOT)} -P policies/english-only.yaml "
        f'--temperature 0 --compare -p "{evaluate.heldout("fault", 1)[0].question}"',
        soft_wrap=True,
    )
    console.print(f"{time.monotonic() - started:.0f} s in all", style="dim")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ScopeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
