"""A model under policies, traffic, mishaps, and a Prometheus that watches: see README.md beside this file.

The policies are those of this repository, the questions held out from the example model's training. On the way a
policy is edited badly and mended, all steering is switched off and on, and a revision is rolled back; who is told of
alerts does not listen for a while, and from the middle on users ask for other things than in the baseline.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "tiny-qwen3"
sys.path.insert(0, str(ROOT))

from scope_runtime import Runtime  # noqa: E402
from scope_runtime.audit.segments import LogFiles  # noqa: E402
from scope_runtime.configured import configured  # noqa: E402
from scope_runtime.drift import Baseline, write_baseline  # noqa: E402
from scope_runtime.drift.measure import sample  # noqa: E402
from scope_runtime.drift.sources import logged  # noqa: E402
from scope_runtime.lifecycle.config import load_config  # noqa: E402
from scope_runtime.lifecycle.types import Cause  # noqa: E402
from tests.support.prometheus import configuration, running  # noqa: E402
from tests.support.webhook import Hook, webhook  # noqa: E402

CONFIG = f"""\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {MODEL / "tiny-qwen3-q8_0.gguf"}, ctx: 512, threads: 1}}
  policy: {{path: policies, state: state}}
  audit: {{path: audit/events.jsonl}}
  metrics: {{listen: "127.0.0.1:0"}}
"""
WATCHED = """\
  alerts:
    window_s: 10
    group_interval_s: 5
    repeat_interval_s: 15
    retry_max_s: 4
    receivers: [{{name: on-call, url: "{url}"}}]
  drift: {{baseline: baseline.json, window: {{requests: 100, looks: 5}}, min_requests: 50}}
"""
ME = Cause("control", "demo", "to show it")


def lay_out(folder: Path, url: str) -> Path:
    """The shipped policies, with an old style for a third of the requests; a baseline; returns scope.yaml.

    Args:
        url: who is told of alerts.
    """
    shutil.copytree(
        ROOT / "policies", folder / "policies", ignore=shutil.ignore_patterns("*.test.yaml")
    )
    style = folder / "policies" / "archaic-style.yaml"
    text = style.read_text(encoding="utf-8")
    text = text.replace(
        "unit: residual\n", "unit: residual\n      rollout: {percent: 33, by: request}\n"
    )
    style.write_text(text, encoding="utf-8")
    watch = folder / "policies" / "refusal-watch.yaml"
    text = watch.read_text(encoding="utf-8")
    watch.write_text(text.replace("[log, metric]", "[log, metric, webhook]"), encoding="utf-8")
    config = folder / "scope.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    with configured(load_config(config)) as runtime:
        for n, question in zip(range(120), questions(), strict=False):
            answer(runtime, question, n)
    normal = sample(logged([LogFiles(folder / "audit" / "events.jsonl")]))
    write_baseline(folder / "baseline.json", Baseline(normal, "log", {}))
    config.write_text(CONFIG + WATCHED.format(url=url), encoding="utf-8")
    return config


def questions(only: str | None = None) -> Iterator[str]:
    """Those held out from training, one of each kind in turn, again and again; or of one kind."""
    every = json.loads((MODEL / "heldout.json").read_text(encoding="utf-8"))
    kinds = [every[only]] if only else every.values()
    return itertools.cycle(
        example["question"] for turn in zip(*kinds, strict=False) for example in turn
    )


def answer(runtime: Runtime, question: str, n: int) -> None:
    """Answers of 20 to 79 tokens."""
    runtime.chat(question, max_tokens=20 + n % 60, temperature=0.7, seed=n)


def ask(runtime: Runtime, over: threading.Event, other: threading.Event) -> None:
    """One question after the other, with a breath between them; from ``other`` on in Chinese alone."""
    for n, both in enumerate(zip(questions(), questions("chinese"), strict=False)):
        if over.wait(0.15):
            return
        answer(runtime, both[other.is_set()], n)


def mishaps(
    runtime: Runtime, style: Path, hook: Hook, other: threading.Event
) -> list[tuple[float, str, Callable[[], object]]]:
    """What goes wrong and is mended, each with when: as a share of the whole time."""
    good = style.read_text(encoding="utf-8")
    lifecycle = runtime.hosted.lifecycle

    def answers(status: int) -> None:
        hook.status = status

    return [
        (0.15, "nobody listens to alerts", lambda: answers(500)),
        (0.25, "somebody does", lambda: answers(200)),
        (0.30, "a bad edit", lambda: style.write_text(good.replace("alpha: 0.8", "alpha: strong"))),
        (0.42, "mended, and milder", lambda: style.write_text(good.replace("0.8", "0.5"))),
        (0.50, "other questions", other.set),
        (0.58, "steering off", lambda: lifecycle.off(ME)),
        (0.70, "steering on", lambda: lifecycle.on(ME)),
        (0.82, "rolled back", lambda: lifecycle.rollback(ME)),
    ]


def main() -> int:
    """Returns how the process should exit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="how long; 4")
    parser.add_argument("--draw", type=Path, help="picture of the dashboard, PNG")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            webhook() as hook,
            configured(load_config(lay_out(folder, hook.url))) as runtime,
            running(
                configuration(
                    folder, str(runtime.hosted.metrics_address), interval="1s", wait="10s"
                )
            ) as prometheus,
        ):
            print(f"Prometheus: {prometheus.http.base_url}", flush=True)
            over, other = threading.Event(), threading.Event()
            asker = threading.Thread(target=ask, args=(runtime, over, other))
            began = time.monotonic()
            asker.start()
            style = folder / "policies" / "archaic-style.yaml"
            for share, what, act in mishaps(runtime, style, hook, other):
                time.sleep(max(0.0, began + 60 * given.minutes * share - time.monotonic()))
                act()
                print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)
            time.sleep(max(0.0, began + 60 * given.minutes - time.monotonic()))
            print("firing:", ", ".join(sorted(prometheus.alerts())) or "none")
            if given.draw:
                draw(given.draw, str(prometheus.http.base_url), given.minutes)
            over.set()
            asker.join()
    return 0


def draw(out: Path, url: str, minutes: float) -> None:
    """The dashboard of that time."""
    command = [sys.executable, str(ROOT / "scripts" / "draw-dashboard"), "--prometheus", url]
    options = ["--minutes", str(minutes), "--rate-interval", "15s", str(out)]
    subprocess.run([*command, *options], check=True)


if __name__ == "__main__":
    sys.exit(main())
