"""Whether memory stays flat while a runtime puts a million events on record."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from scope_runtime import Runtime
from scope_runtime.audit import AuditOptions
from scope_runtime.audit.note import SigningKey
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.events import Event
from scope_runtime.llama.engine import Generation

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "tiny-qwen3" / "tiny-qwen3-q8_0.gguf"
POLICY = ROOT / "policies" / "english-only.yaml"
N_A_REQUEST = 100


def request(like: Generation, number: int) -> list[Event]:
    """A hundred events of a request, about 1 kB each: a real one's rules again and again, and its summary."""
    about = {"request_id": f"r{number:012d}", "labels": {"tenant": f"t{number % 7}"}}
    rules = [event for event in like.report if event.what == "rule"]
    events = [rules[n % len(rules)] for n in range(N_A_REQUEST - 1)] + [like.report[-1]]
    return [replace(event, time=time.time(), **about) for event in events]  # type: ignore[arg-type]


def measure(folder: Path, n_events: int, n_steps: int = 10) -> dict[str, Any]:
    """Writes events through everything that a runtime keeps them in; memory at every step.

    Returns:
        ``rss_mb`` at the start and after each step; ``growth_mb`` from the first step to the last.
    """
    key = SigningKey.generate("example.com/benchmark")
    (folder / "key").touch(0o600)
    (folder / "key").write_text(key.text)
    log = AuditOptions(
        folder / "log.jsonl",
        key=folder / "key",
        rotate_bytes=16 << 20,
        retention_s=60.0,
        compress=True,
    )
    began = time.perf_counter()
    with Runtime(MODEL, POLICY, audit=log, n_ctx=256, n_threads=1) as runtime:
        like = runtime.generate([5, 17, 33], max_tokens=8, temperature=0.0)
        found = [rss_mb()]
        print(f"{0:>9} events: {found[-1]:8.1f} MB", file=sys.stderr)
        for step in range(n_steps):
            for number in range(n_events // n_steps // N_A_REQUEST):
                runtime.write(request(like, step * 10**6 + number))
            found.append(rss_mb())
            done = (step + 1) * (n_events // n_steps)
            print(f"{done:>9} events: {found[-1]:8.1f} MB", file=sys.stderr, flush=True)
        kept = len(runtime.events())
        dropped = runtime.audit.dropped if runtime.audit else None
    took = time.perf_counter() - began
    report = verify(LogFiles(folder / "log.jsonl"), keys=[key.public])
    return {
        "events": n_events,
        "seconds": round(took, 1),
        "rss_mb": [round(each, 1) for each in found],
        # The first step fills what is kept in memory: the last 10,000 events.
        "growth_mb": round(found[-1] - found[1], 1),
        "kept_in_memory": kept,
        "dropped": dropped,
        "records": report.n_records,
        "segments_left": report.n_segments,
        "sound": report.bad is None,
    }


def rss_mb() -> float:
    """This process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not say how much memory is resident")
