"""What a reload costs and how soon it holds: policies renamed into place while a model generates without a pause.

    python benchmarks/reload.py            # 1,000 reloads: about 10 minutes; results into benchmarks/results
    python benchmarks/reload.py --quick    # seconds: to see that it runs

Two arms take turns in blocks of the same answer: with a reload every 200 ms, and without. What is reported: the time
from rename() to the first token whose record bears the new revision; the swap, during which a token may wait; the
ratio of the arms' 99th percentiles of token time; and every token's revision, checked against those that were
renamed into place.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scope_runtime import Runtime  # noqa: E402
from scope_runtime.lifecycle import Options  # noqa: E402
from scope_runtime.llama.engine import Generation  # noqa: E402

MODEL = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
POLICIES = ROOT / "policies"
POLICY = "english-only.yaml"
PERIOD_S = 0.2
GIVE_UP_S = 30.0
N_ANSWER = 256


@dataclass(slots=True)
class Measured:
    """Seconds, except where a name says otherwise.

    Attributes:
        until_token: from rename to the end of the first token under the new revision, one a reload.
        token_times: of the arms with and without reloads, one list a block.
        n_wrong: tokens whose record bears a revision that was not in place then or just before.
    """

    until_token: list[float] = field(default_factory=list)
    with_reloads: list[list[float]] = field(default_factory=list)
    without: list[list[float]] = field(default_factory=list)
    swap_ms: list[float] = field(default_factory=list)
    n_tokens: int = 0
    n_wrong: int = 0
    n_failed: int = 0


class Reloads:
    """Renames a changed policy into place again and again, and notes when and which."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self._path = folder / POLICY
        self._text = self._path.read_text(encoding="utf-8")
        self._runtime = runtime
        self._number = 1
        self.renamed_at = 0.0
        self.previous = self.wanted = runtime.hosted.lifecycle.revision
        self.known = {self.wanted}

    def one(self) -> None:
        """Renames the next revision into place; returns when it is known which that is and it is in force."""
        self._number += 1
        new = self._path.with_name(f".{POLICY}.new")
        new.write_text(
            self._text.replace("generation: 1", f"generation: {self._number}"), encoding="utf-8"
        )
        before = self._runtime.hosted.lifecycle.revision
        self.renamed_at = time.perf_counter()
        new.rename(self._path)
        deadline = self.renamed_at + GIVE_UP_S
        while (found := self._runtime.hosted.lifecycle.revision) == before:
            if time.perf_counter() > deadline:
                raise RuntimeError("a reload did not take effect")
            time.sleep(0.01)  # only to learn the revision: looking more often would slow the tokens
        self.previous, self.wanted = before, found
        self.known.add(found)


def measure(n_reloads: int, block_s: float, n_threads: int | None, nice: int) -> Measured:
    """Blocks of both arms in turns until there were so many reloads."""
    found = Measured()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policies"
        shutil.copytree(POLICIES, folder)
        options = Options(poll_s=60.0, compile_nice=nice)
        with Runtime(
            MODEL, folder / POLICY, watch=options, n_ctx=2048, n_threads=n_threads
        ) as runtime:
            reloads = Reloads(folder, runtime)
            block(runtime, block_s, Measured())  # warm
            while len(found.until_token) < n_reloads:
                found.without.append(block(runtime, block_s, found))
                left = n_reloads - len(found.until_token)
                found.with_reloads.append(block(runtime, block_s, found, reloads, left))
            found.swap_ms = [
                event.detail["hook_swap_ms"]
                for event in runtime.events()
                if event.what == "swapped"
            ][1:]
    return found


def block(
    runtime: Runtime,
    block_s: float,
    found: Measured,
    reloads: Reloads | None = None,
    n_left: int = 0,
) -> list[float]:
    """Token times of answers, one after the other for so long, with reloads beside them where there are ``reloads``."""
    took: list[float] = []
    computed: list[tuple[float, str]] = []  # when a token was, and under which revision
    made: list[tuple[float, str]] = []  # when a revision was renamed into place, and which
    over = threading.Event()

    def reload_now_and_then(reloads: Reloads) -> None:
        while len(made) < n_left and not over.wait(PERIOD_S):
            reloads.one()
            made.append((reloads.renamed_at, reloads.wanted))

    known = reloads.known if reloads else {runtime.hosted.lifecycle.revision}
    thread = threading.Thread(target=reload_now_and_then, args=(reloads,)) if reloads else None
    if thread:
        thread.start()
    until = time.perf_counter() + block_s
    # The block's last answer outlives the reloads, so that each of them has a token.
    while time.perf_counter() < until or (thread and thread.is_alive()):
        if time.perf_counter() >= until:
            over.set()
        answer, times = one_answer(runtime)
        took += np.diff(times).tolist()
        revisions = by_token(runtime, answer, len(times))
        computed += zip(times, revisions, strict=True)
        found.n_tokens += len(times)
        found.n_failed += answer.finish_reason not in ("stop", "length")
    answer, times = one_answer(runtime)
    computed += zip(times, by_token(runtime, answer, len(times)), strict=True)
    # Only now: the last reload may have been noticed after the token that it reached.
    found.n_wrong += sum(revision not in known for _, revision in computed)
    for renamed, revision in made:
        first = next((at for at, under in computed if under == revision and at > renamed), None)
        # One that a later reload overtook between two tokens has no token of its own.
        if first is not None:
            found.until_token.append(first - renamed)
    return took


def one_answer(runtime: Runtime) -> tuple[Generation, list[float]]:
    """An answer, and when the column that each of its tokens was drawn from had been computed."""
    times: list[float] = []

    def note() -> bool:
        times.append(time.perf_counter())
        return False

    answer = runtime.generate(
        list(range(5, 21)), max_tokens=N_ANSWER, temperature=1.0, seed=len(times), cancelled=note
    )
    return answer, times


def by_token(runtime: Runtime, answer: Generation, n: int) -> list[str]:
    """The revision that each of the answer's first ``n`` columns was computed under, as the request's record says."""
    record = next(
        event.record()
        for event in reversed(runtime.events())
        if event.what == "summary" and event.request_id == answer.request_id
    )
    spans = [(each["from_position"], each["revision"]) for each in record["revisions"]]
    first = answer.n_prompt - 1
    return [
        [revision for start, revision in spans if start <= position][-1]
        for position in range(first, first + n)
    ]


def summary(found: Measured) -> dict[str, Any]:
    """The figures, as data."""
    token = [
        np.array([t for one in arm for t in one]) for arm in (found.without, found.with_reloads)
    ]
    p50, p99 = ([float(np.percentile(arm, q)) for arm in token] for q in (50, 99))
    until = np.array(found.until_token)
    return {
        "reloads": len(until),
        "rename_to_first_token_ms": {
            "p50": float(np.percentile(until, 50)) * 1e3,
            "p99": float(np.percentile(until, 99)) * 1e3,
            "max": float(until.max()) * 1e3,
        },
        "swap_ms": {
            "p50": float(np.percentile(found.swap_ms, 50)),
            "p99": float(np.percentile(found.swap_ms, 99)),
            "max": float(max(found.swap_ms)),
        },
        "token_ms": {
            "without": {"p50": p50[0] * 1e3, "p99": p99[0] * 1e3},
            "with": {"p50": p50[1] * 1e3, "p99": p99[1] * 1e3},
        },
        "token_p99_ratio": p99[1] / p99[0],
        "tokens": found.n_tokens,
        "tokens_under_a_wrong_revision": found.n_wrong,
        "failed_generations": found.n_failed,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the figures as JSON, and writes them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few reloads, to see that it runs")
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=Options().compile_nice)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    n_reloads = 3 if options.quick else options.reloads
    results = summary(
        measure(n_reloads, 1.0 if options.quick else 4.0, options.threads, options.nice)
    )
    text = json.dumps(results, indent=1)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "reload.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
