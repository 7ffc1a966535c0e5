"""Figures out of measured rounds: results file, table, plot, and the marked section of the README."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arms import ARMS, BASE
from benchmarks.samples import Plan, Round
from scope_runtime.paired import Ratio, paired_ratio

TARGETS = {
    "8 features, 1 layer": (1.01, 1.02),
    "8 features, every layer": (1.03, 1.04),
}
"""Largest median ratio, and largest upper bound, for decode and prompt alike."""

BEGIN, END = "<!-- overhead:begin -->", "<!-- overhead:end -->"
KINDS = ("decode", "prompt")


def summarise(plan: Plan, rounds: Sequence[Round], n_sittings: int, date: str) -> dict[str, Any]:
    """Everything the table, the plot and a reader of the results file need."""
    arms = {}
    for name in ARMS:
        there = [one for one in rounds if name in one.prompt]
        decode = [ms for one in there for ms in one.decode[name]]
        arms[name] = {
            "n_decode_tokens": len(decode) * plan.n_block_tokens,
            "n_prompts": len(there),
            "decode_ms_per_token": statistics.median(decode) * 1e3,
            "prompt_tokens_per_second": plan.n_prompt
            / statistics.median(one.prompt[name] for one in there),
            "decode": asdict(_ratio(there, name, "decode")),
            "prompt": asdict(_ratio(there, name, "prompt")),
        }
    return {
        "date": date,
        "machine": machine(),
        "plan": asdict(plan),
        "n_sittings": n_sittings,
        "arms": arms,
        "met": {name: _met(arms[name], name) for name in TARGETS},
        "rounds": [asdict(one) for one in rounds],
    }


def _ratio(rounds: Sequence[Round], name: str, kind: str) -> Ratio:
    if kind == "decode":
        return paired_ratio(
            [one.decode[name] for one in rounds], [one.decode[BASE] for one in rounds]
        )
    return paired_ratio(
        [[one.prompt[name]] for one in rounds], [[one.prompt[BASE]] for one in rounds]
    )


def _met(arm: dict[str, Any], name: str) -> bool:
    median, upper = TARGETS[name]
    return all(arm[kind]["median"] <= median and arm[kind]["upper"] <= upper for kind in KINDS)


def machine() -> dict[str, Any]:
    """What the figures depend on; no names of hosts or people."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def table(results: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| arm | decode, ms/token | ratio (95 %) | prompt, tokens/s | ratio (95 %) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, arm in results["arms"].items():
        cells = [
            name,
            f"{arm['decode_ms_per_token']:.2f}",
            _cell(arm["decode"], name),
            f"{arm['prompt_tokens_per_second']:.0f}",
            _cell(arm["prompt"], name),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(ratio: dict[str, float], name: str) -> str:
    if name == BASE:
        return "1"
    return f"{ratio['median']:.4f} ({ratio['lower']:.4f} to {ratio['upper']:.4f})"


def section(results: dict[str, Any], plot: str | None) -> str:
    """What stands between the README's marks."""
    plan, machine_ = results["plan"], results["machine"]
    base = results["arms"][BASE]
    sittings = results["n_sittings"]
    verdicts = [
        f"- {name}: {'met' if met else '**not met**'} "
        f"(median ≤ {TARGETS[name][0]}, upper bound ≤ {TARGETS[name][1]}, decode and prompt)"
        for name, met in results["met"].items()
    ]
    parts = [
        f"{results['date']}, {machine_['cpu']}, {machine_['cores']} cores, {machine_['system']}, "
        f"{plan['build']}, {plan['n_threads']} threads, model {plan['model']}. "
        f"{base['n_decode_tokens']} decode tokens and {base['n_prompts']} prompts of "
        f"{plan['n_prompt']} tokens an arm, in "
        f"{'one run' if sittings == 1 else f'{sittings} sittings'} "
        f"(Python callback: every {plan['slow_every']}th round only).",
        table(results),
        "\n".join(verdicts),
    ]
    if plot:
        parts.append(f"![Ratio of each arm's time to no hook's, with 95 % intervals]({plot})")
    return "\n\n".join(parts)


def write_section(readme: Path, text: str) -> None:
    """Replaces what stands between the marks. Raises ValueError where they are missing."""
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme} has no {BEGIN} … {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def write_plot(results: dict[str, Any], path: Path) -> None:
    """Ratios with their intervals, decode and prompt side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "overhead"  # the same figures give the same file
    names = [name for name in results["arms"] if name != BASE]
    figure, panes = pyplot.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    for pane, kind in zip(panes, KINDS, strict=True):
        for height, name in enumerate(names):
            _draw(pane, results["arms"][name][kind], len(names) - 1 - height)
        near = [results["arms"][n][kind] for n in names if results["arms"][n][kind]["median"] < 1.1]
        pane.set_xlim(
            min([0.985, *(r["lower"] - 0.003 for r in near)]),
            max([1.045, *(r["upper"] + 0.01 for r in near)]),
        )
        pane.axvline(1, color="0.6", linewidth=1)
        pane.axvline(1.03, color="0.8", linewidth=1, linestyle="--")
        pane.set_title(f"{kind}: time relative to no hook")
        pane.set_yticks(range(len(names)), reversed(names))
        pane.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw(pane: Any, ratio: dict[str, float], height: int) -> None:
    """A point with its interval; an arrow and a number for what lies beyond the pane."""
    if ratio["median"] >= 1.1:
        pane.annotate(
            f"{ratio['median']:.2f} →",
            (0.98, height),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
        )
        return
    low, high = ratio["median"] - ratio["lower"], ratio["upper"] - ratio["median"]
    pane.errorbar(
        ratio["median"], height, xerr=[[low], [high]], fmt="o", color="C0", capsize=3, markersize=4
    )


def write_results(results: dict[str, Any], path: Path) -> None:
    """The results file: one line a round, so that a reader can look at it."""
    head = {key: value for key, value in results.items() if key != "rounds"}
    rounds = ",\n".join("  " + json.dumps(one) for one in results["rounds"])
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{text},\n "rounds": [\n{rounds}\n ]\n}}\n')
