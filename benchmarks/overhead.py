"""What steering costs: decode and prompt times with and without the hook, side by side in one run.

    python benchmarks/overhead.py            # about half an hour; results into benchmarks/
    python benchmarks/overhead.py --quick    # seconds: a tiny model, to see that it runs

Stop it with Ctrl-C and start it again with the same options: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.arms import ARMS, BASE, SLOW_ARM, Bench  # noqa: E402
from benchmarks.random_q4_model import QWEN3_0_6B, TINY, model_file  # noqa: E402
from benchmarks.samples import Journal, Plan, Round  # noqa: E402
from scope_runtime.files import cache_folder  # noqa: E402
from scope_runtime.llama import library  # noqa: E402
from scope_runtime.native.abi import build_info  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark, or with ``--plot`` only draws what the last run found."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.plot:
        results = json.loads((out / "overhead.json").read_text())
    else:
        found = _measure(options, console)
        if found is None:
            return 130
        results = found
        report.write_results(results, out / "overhead.json")
    report.write_plot(results, out / "overhead.svg")
    readme = out.parent / "README.md"
    if readme.exists():
        plot = (out / "overhead.svg").relative_to(readme.parent).as_posix()
        report.write_section(readme, report.section(results, plot))
    if options.json:
        print(json.dumps({key: value for key, value in results.items() if key != "rounds"}))
    else:
        print(report.section(results, None))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model and a few rounds: figures mean nothing")
    add("--rounds", type=int, help="rounds to measure (default: 80, quick: 3)")
    add("--threads", type=int, default=2, help="CPU threads of every arm (default: 2)")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    add("--plot", action="store_true", help="measure nothing; draw the last results again")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results")
    add("--cache", type=Path, default=cache_folder() / "benchmarks", help="folder for the model")
    return parser


def _measure(options: argparse.Namespace, console: Console) -> dict[str, object] | None:
    """Results of a finished run; None if it was interrupted."""
    shape, label = (
        (TINY, "tiny") if options.quick else (QWEN3_0_6B, "Qwen3-0.6B-shaped random Q4_0")
    )
    library.load()
    with console.status("writing the random model"):
        model = model_file(shape, options.cache)
    sizes = (3, 32, 2, 3, 2) if options.quick else (80, 256, 5, 5, 4)
    n_rounds, n_prompt, n_blocks, n_block_tokens, slow_every = sizes
    plan = Plan(
        model=label,
        build=f"llama-cpp-python {library.load().version}, {build_info()}",
        n_threads=options.threads,
        n_rounds=options.rounds or n_rounds,
        n_prompt=n_prompt,
        n_blocks=n_blocks,
        n_block_tokens=n_block_tokens,
        slow_every=slow_every,
    )
    digest = hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:16]
    journal = Journal(options.cache / f"overhead-{digest}.jsonl", plan)
    if journal.rounds:
        console.print(f"going on after {len(journal.rounds)} rounds of an interrupted run")
    try:
        _run(plan, journal, model, console)
    except KeyboardInterrupt:
        console.print(f"stopped after {len(journal.rounds)} of {plan.n_rounds} rounds")
        return None
    results = report.summarise(plan, journal.rounds, journal.n_sittings, date.today().isoformat())
    journal.discard()
    return results


def _run(plan: Plan, journal: Journal, model: Path, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rounds"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    n_ctx = plan.n_prompt + plan.n_blocks * plan.n_block_tokens
    n_ctx += -n_ctx % 256
    with (
        tempfile.TemporaryDirectory() as folder,
        Bench(model, Path(folder), n_ctx, plan.n_threads) as bench,
        Progress(*columns, console=console) as progress,
    ):
        check(bench)
        task = progress.add_task("measuring", total=plan.n_rounds, completed=len(journal.rounds))
        for number in range(len(journal.rounds), plan.n_rounds):
            journal.add(measure_round(bench, plan, number))
            progress.advance(task)


def check(bench: Bench) -> None:
    """The arms do what their names say, or their times mean nothing. Warms every context up too."""
    tokens = _tokens(np.random.default_rng(0), bench, 16)
    logits = {}
    for name, arm in bench.arms.items():
        arm.begin(len(tokens))
        arm.decode(bench.batch, tokens)
        logits[name] = arm.logits(bench.n_vocab)
        arm.end()
    for name in (ARMS[1], ARMS[2]):
        if not np.array_equal(logits[name], logits[BASE]):
            raise RuntimeError(f"{name} changes the logits")
    for name in ARMS[3:]:
        if np.array_equal(logits[name], logits[BASE]):
            raise RuntimeError(f"{name} changes nothing")
    apart = np.abs(logits[ARMS[4]] - logits[SLOW_ARM]).max() / np.ptp(logits[BASE])
    if apart > 1e-3:
        raise RuntimeError(f"the hook and the Python callback differ by {apart:.1e} of the range")


def measure_round(bench: Bench, plan: Plan, number: int) -> Round:
    """A prompt in each arm, then blocks of tokens in turn; every turn in an order of its own."""
    rng = np.random.default_rng([1, number])
    names = [name for name in ARMS if name != SLOW_ARM or number % plan.slow_every == 0]
    prompt = _tokens(rng, bench, plan.n_prompt)
    round_ = Round({}, {name: [] for name in names})
    for name in rng.permutation(names):
        arm = bench.arms[name]
        arm.begin(plan.n_prompt)
        round_.prompt[str(name)] = arm.decode(bench.batch, prompt)
    for _ in range(plan.n_blocks):
        answer = _tokens(rng, bench, plan.n_block_tokens)
        for name in rng.permutation(names):
            arm = bench.arms[name]
            times = [arm.decode(bench.batch, [token]) for token in answer]
            round_.decode[str(name)].append(statistics.median(times))
    for name in names:
        bench.arms[name].end()
    return round_


def _tokens(rng: np.random.Generator, bench: Bench, n: int) -> list[int]:
    """Ordinary tokens: none of the control tokens at the vocabulary's end."""
    return [int(token) for token in rng.integers(0, bench.n_vocab - 16, n)]


if __name__ == "__main__":
    sys.exit(main())
