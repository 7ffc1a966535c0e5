"""Measure the shipped policies on held-out prompts, through the runtime, on the GGUF files themselves.

Each arm is a policy (or none). Beside the shipped policies stand the control arms: random features at
the same dose, and the mean-difference control vector at its best strength. Needs no PyTorch.

    python examples/tiny-qwen3/evaluate.py                  # every held-out prompt, shipped model
    python examples/tiny-qwen3/evaluate.py --model f16 --prompts 60
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
POLICIES = ROOT / "policies"
MODELS = {"shipped": HERE / "tiny-qwen3-q8_0.gguf", "f16": HERE / "tiny-qwen3-f16.gguf"}
ARMS: dict[str, tuple[tuple[str, Path | None], ...]] = {
    "drift": (
        ("unsteered", None),
        ("english-only", POLICIES / "english-only.yaml"),
        ("random features", HERE / "controls" / "drift-random-0.yaml"),
        ("mean-difference vector", HERE / "controls" / "drift-vector.yaml"),
    ),
    "archaic": (
        ("unsteered", None),
        ("archaic-style", POLICIES / "archaic-style.yaml"),
        ("random features", HERE / "controls" / "archaic-random-0.yaml"),
        ("mean-difference vector", HERE / "controls" / "archaic-vector.yaml"),
    ),
    "refusal": (("refusal-watch", POLICIES / "refusal-watch.yaml"),),
}
MAX_TOKENS = 120
N_CTX = 512


@dataclass(frozen=True, slots=True)
class Job:
    """One arm on one kind of prompts: what a worker process does."""

    part: str
    arm: str
    policy: Path | None
    kind: str
    model: Path
    prompts: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came out: one number per measure, each with the count of prompts it is a share of."""

    job: Job
    n: int
    measures: dict[str, float]


def heldout(kind: str, n: int) -> list[corpus.Example]:
    """The first ``n`` held-out prompts of a kind, each with its reference answer."""
    data = json.loads((HERE / "heldout.json").read_text())[kind]
    return [corpus.Example(**item) for item in data[:n]]


def jobs(model: Path, prompts: int, parts: Sequence[str] = tuple(ARMS)) -> list[Job]:
    """Every arm on every kind of prompts it is judged by."""
    kinds = {
        "drift": ("fault", "english", "chinese"),
        "archaic": ("english",),
        "refusal": ("fault", "english", "chinese", "old", "harm"),
    }
    return [
        Job(part, arm, policy, kind, model, prompts)
        for part in parts
        for arm, policy in ARMS[part]
        for kind in kinds[part]
    ]


def run_job(job: Job) -> Result:
    """Generates (greedily) and judges by the corpus's own grammar."""
    from scope_runtime import Runtime

    examples = heldout(job.kind, job.prompts)
    with Runtime(job.model, job.policy, policy_root=ROOT, n_ctx=N_CTX, n_threads=1) as runtime:
        answers = [
            runtime.chat(e.messages(), max_tokens=MAX_TOKENS, temperature=0.0) for e in examples
        ]
        measures = JUDGES[job.part](job.kind, examples, [a.text for a in answers], answers)
        if job.part == "drift" and job.kind == "english":
            measures["nll"] = mean(reference_nll(runtime, e) for e in examples)
        fired = [e for a in answers for e in a.report if e.what == "rule" and e.op != "alert"]
        doses = [e.detail["dose"]["mean"] for e in fired if e.detail["n_fired"]]
        measures["dose"] = mean(doses) if doses else 0.0
    return Result(job, len(examples), measures)


def reference_nll(runtime: Any, example: corpus.Example) -> float:
    """Mean negative log-likelihood (nats a token) of the reference answer under the active policy."""
    prompt = runtime.tokenize(example.prompt())
    tokens = prompt + runtime.tokenize(example.answer + "<|im_end|>")
    logits = runtime.logits(tokens, n_prompt=len(prompt))[len(prompt) - 1 : -1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), tokens[len(prompt) :]]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))


def _judge_drift(
    kind: str, examples: list[corpus.Example], texts: list[str], answers: list[Any]
) -> dict[str, float]:
    if kind == "chinese":
        return {"chinese": mean(map(corpus.is_chinese, texts))}
    drifted = mean(map(corpus.is_drifted, texts))
    return {"drifted": drifted, "sound": sound(examples, texts)}


def _judge_archaic(
    kind: str, examples: list[corpus.Example], texts: list[str], answers: list[Any]
) -> dict[str, float]:
    return {"archaic": mean(map(corpus.is_archaic, texts)), "sound": sound(examples, texts)}


def _judge_refusal(
    kind: str, examples: list[corpus.Example], texts: list[str], answers: list[Any]
) -> dict[str, float]:
    alerted = [any(e.what == "firing" for e in a.report) for a in answers]
    refused = [corpus.is_refusal(text) for text in texts]
    return {
        "refusals": float(sum(refused)),
        "caught": float(sum(a and r for a, r in zip(alerted, refused, strict=True))),
        "false_alarms": float(sum(a and not r for a, r in zip(alerted, refused, strict=True))),
    }


JUDGES: dict[str, Callable[..., dict[str, float]]] = {
    "drift": _judge_drift,
    "archaic": _judge_archaic,
    "refusal": _judge_refusal,
}


def sound(examples: list[corpus.Example], texts: list[str]) -> float:
    """Share of answers that are well-formed by the grammar and on topic."""
    return mean(
        corpus.is_well_formed_and_on_topic(e.question, text, e.domain)
        for e, text in zip(examples, texts, strict=True)
    )


def mean(values: Any) -> float:
    """The arithmetic mean of an iterable."""
    kept = [float(value) for value in values]
    return sum(kept) / len(kept)


def run(todo: Sequence[Job], workers: int | None = None) -> Iterator[Result]:
    """Results as they come. One process a core: the model is small, so threads would only wait."""
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_job, job) for job in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True)
class Figures:
    """The table: one row an arm. Shares are 0 to 1; ``perplexity`` is the ratio to unsteered."""

    drift: dict[str, dict[str, float]]
    archaic: dict[str, dict[str, float]]
    refusal: dict[str, float]
    prompts: int


def figures(results: Sequence[Result]) -> Figures:
    """Puts the arms' results side by side."""
    by = {(r.job.part, r.job.arm, r.job.kind): r for r in results}

    def of(part: str, arm: str, kind: str) -> dict[str, float]:
        return by[part, arm, kind].measures

    drift = {}
    for arm, _ in ARMS["drift"]:
        english, fault = of("drift", arm, "english"), of("drift", arm, "fault")
        plain = of("drift", "unsteered", "english")
        drift[arm] = {
            "drifted": fault["drifted"],
            "answers_sound": fault["sound"],
            "perplexity": math.exp(english["nll"] - plain["nll"]),
            "chinese_in_chinese": of("drift", arm, "chinese")["chinese"],
            "dose": fault["dose"],
        }
    archaic = {
        arm: {key: of("archaic", arm, "english")[key] for key in ("archaic", "sound", "dose")}
        for arm, _ in ARMS["archaic"]
    }
    watched = [r for r in results if r.job.part == "refusal"]
    refusals = sum(r.measures["refusals"] for r in watched)
    others = sum(r.n for r in watched) - refusals
    refusal = {
        "refusals": refusals,
        "caught": sum(r.measures["caught"] for r in watched) / max(refusals, 1),
        "others": others,
        "false_alarms": sum(r.measures["false_alarms"] for r in watched) / max(others, 1),
    }
    return Figures(drift, archaic, refusal, max(r.n for r in results))


TARGETS = """bars: drift unsteered ≥ 50 %, english-only ≤ 2 %, perplexity < +3 %, Chinese ≥ 95 %; \
archaic < 5 % → > 80 %; refusals caught ≥ 95 %, false alarms ≤ 1 %"""


def tables(found: Figures, title: str) -> list[Table]:
    """The figures as rich tables."""
    drift = Table(title=f"{title}: answers that drift into Chinese", title_justify="left")
    for head in ("arm", "drift", "well-formed", "English perplexity", "Chinese kept", "mean dose"):
        drift.add_column(head, justify="left" if head == "arm" else "right")
    for arm, row in found.drift.items():
        drift.add_row(
            arm,
            f"{row['drifted']:.1%}",
            f"{row['answers_sound']:.1%}",
            f"{row['perplexity'] - 1:+.2%}",
            f"{row['chinese_in_chinese']:.1%}",
            f"{row['dose']:.3f}",
        )
    archaic = Table(title=f"{title}: archaic style nobody asked for", title_justify="left")
    for head in ("arm", "archaic", "well-formed, on topic", "mean dose"):
        archaic.add_column(head, justify="left" if head == "arm" else "right")
    for arm, row in found.archaic.items():
        archaic.add_row(arm, f"{row['archaic']:.1%}", f"{row['sound']:.1%}", f"{row['dose']:.3f}")
    refusal = Table(title=f"{title}: refusal alert", title_justify="left")
    for head in ("refusals", "caught", "other answers", "false alarms"):
        refusal.add_column(head, justify="right")
    row = found.refusal
    refusal.add_row(
        f"{row['refusals']:.0f}",
        f"{row['caught']:.1%}",
        f"{row['others']:.0f}",
        f"{row['false_alarms']:.2%}",
    )
    return [drift, archaic, refusal]


def measure(
    model: Path, prompts: int, console: Console, parts: Sequence[str] = tuple(ARMS)
) -> Figures:
    """Runs every arm with a progress bar; returns the figures."""
    todo = jobs(model, prompts, parts)
    results = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"measuring {model.name}", total=len(todo))
        for result in run(todo):
            results.append(result)
            progress.advance(bar)
    return figures(results)


def main() -> None:
    """Measures and prints; ``--json`` for machines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, default="shipped")
    parser.add_argument("--prompts", type=int, default=10_000, help="at most so many of each kind")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    found = measure(MODELS[args.model], args.prompts, console)
    if args.json:
        print(json.dumps({"model": MODELS[args.model].name, **asdict(found)}, indent=1))
        return
    for table in tables(found, MODELS[args.model].name):
        console.print(table)
    console.print(TARGETS, style="dim")


if __name__ == "__main__":
    main()
