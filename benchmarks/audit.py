"""How many records a second the audit log takes: about 1 kB each, group commit, fsync, several callers.

    python -m benchmarks.audit             a minute
    python -m benchmarks.audit --memory    a million events through a runtime: does its memory stay flat?
    python -m benchmarks.audit --token-path    what the log costs an answer's tokens: off, off again and on in turns
    python -m benchmarks.audit --quick     little of either, to see that it runs

Each caller writes a request's two records and waits until they are on the disk, as ``generate`` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import audit_memory, audit_token_path
from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.note import SigningKey
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.events import Event, Kind


def request(number: int) -> list[Event]:
    """A rule's record and a request's, about 1 kB each."""
    digests = {"model": f"sha256:{'0' * 64}", "packs": {"packs/model.gguf": f"sha256:{'1' * 64}"}}
    detail = {
        "policy": "english-only",
        "revision": f"sha256:{'2' * 64}",
        "n_tokens": 300,
        "n_fired": 280,
        "activation": {"max": 12.25, "mean": 3.125},
        "dose": {"max": 0.25, "mean": 0.0625},
        "positions": {"first": 20, "last": 319},
        "digests": digests,
        "note": "x" * 280,
    }
    keys = {"request_id": f"r{number:012d}", "labels": {"tenant": "acme", "user": "u" * 40}}
    now = time.time()
    return [
        Event(Kind.REQUEST, what, now, sequence=0, mode="enforce", detail=detail, **keys)  # type: ignore[arg-type]
        for what in ("rule", "summary")
    ]


def measure(folder: Path, seconds: float, most: int, callers: int) -> dict[str, object]:
    """Writes for a time, or ``most`` requests per caller; returns what was found."""
    key = SigningKey.generate("example.com/benchmark")
    (folder / "key").touch(0o600)
    (folder / "key").write_text(key.text)
    log = AuditLog(AuditOptions(folder / "log.jsonl", key=folder / "key"))
    fsync, n_syncs, waits = os.fsync, [0], list[float]()
    counts = [0] * callers

    def counted(fd: int) -> None:
        n_syncs[0] += 1
        fsync(fd)

    os.fsync = counted
    started, cpu = time.perf_counter(), time.process_time()

    def call(caller: int) -> None:
        while counts[caller] < most and time.perf_counter() - started < seconds:
            events = request(counts[caller])
            begun = time.perf_counter()
            log.write(events)
            waits.append(time.perf_counter() - begun)
            counts[caller] += 1

    threads = [threading.Thread(target=call, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    cpu = time.process_time() - cpu
    os.fsync = fsync
    log.close()
    files = LogFiles(log.path)
    n_bytes = sum(path.stat().st_size for path in files.segments())
    begun = time.perf_counter()
    report = verify(files, keys=[key.public])
    verified_s = time.perf_counter() - begun
    waits.sort()
    return {
        "records": 2 * sum(counts),
        "callers": callers,
        "seconds": round(took, 3),
        "records_per_s": round(2 * sum(counts) / took),
        "bytes_per_record": round(n_bytes / report.n_records),
        "records_per_fsync": round(2 * sum(counts) / n_syncs[0], 1),
        "cpu_us_per_record": round(1e6 * cpu / (2 * sum(counts)), 1),
        "wait_ms_median": round(1000 * waits[len(waits) // 2], 2),
        "wait_ms_p99": round(1000 * waits[len(waits) * 99 // 100], 2),
        "verified_records_per_s": round(report.n_records / verified_s),
        "sound": report.bad is None and report.covered == report.n_records,
    }


def main(arguments: list[str]) -> int:
    """Measures and prints one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="some hundred records only")
    parser.add_argument("--dir", type=Path, help="on this disk, rather than where /tmp lies")
    parser.add_argument("--memory", action="store_true", help="memory over --events")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--token-path", action="store_true", help="what an answer's tokens cost")
    parser.add_argument("--rounds", type=int, default=300, help="of three answers each")
    parser.add_argument("--threads", type=int, help="of llama.cpp's; its own choice without")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
        folder = Path(temporary)
        if args.memory:
            found = audit_memory.measure(folder, 5000 if args.quick else args.events)
        elif args.token_path:
            n_rounds, n_tokens = (3, 8) if args.quick else (args.rounds, 128)
            found = audit_token_path.measure(folder, n_rounds, n_tokens, args.threads)
        else:
            most = 20 if args.quick else sys.maxsize
            found = measure(folder, args.seconds, most, args.callers)
    print(json.dumps(found, indent=2))
    return 0 if args.quick or found.get("sound", found.get("met")) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
