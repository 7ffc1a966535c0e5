"""What an audit log costs an answer: off, off again and on in turns, on the model that ships."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit_memory import MODEL, POLICY
from scope_runtime import Runtime
from scope_runtime.audit import AuditOptions
from scope_runtime.audit.note import SigningKey
from scope_runtime.paired import Ratio, paired_ratio

OFF, AGAIN, ON = "off", "off again", "on"
N_PROMPT = 16
MOST = 1.01
"""Ratio of token times that is asked for."""


@contextmanager
def arms(folder: Path, n_threads: int | None) -> Iterator[dict[str, Runtime]]:
    """A runtime an arm, equal but for the log."""
    (folder / "key").touch(0o600)
    (folder / "key").write_text(SigningKey.generate("example.com/benchmark").text)
    log = AuditOptions(folder / "log.jsonl", key=folder / "key")
    with ExitStack() as opened:
        yield {
            name: opened.enter_context(
                Runtime(MODEL, POLICY, audit=audit, n_ctx=1024, n_threads=n_threads)
            )
            for name, audit in ((OFF, None), (AGAIN, None), (ON, log))
        }


def answer(runtime: Runtime, seed: int, n_tokens: int) -> tuple[float, float]:
    """(seconds a token while an answer grows, seconds of the whole request with its record on the disk)."""
    times: list[float] = []

    def note() -> bool:
        times.append(time.perf_counter())
        return False

    began = time.perf_counter()
    runtime.generate(
        list(range(5, 5 + N_PROMPT)),
        max_tokens=n_tokens,
        temperature=1.0,
        seed=seed,
        cancelled=note,
    )
    return float(np.median(np.diff(times))), time.perf_counter() - began


def measure(folder: Path, n_rounds: int, n_tokens: int, n_threads: int | None) -> dict[str, Any]:
    """Rounds of three answers, one an arm, in an order drawn anew."""
    rng = np.random.default_rng(0)
    tokens: dict[str, list[list[float]]] = {OFF: [], AGAIN: [], ON: []}
    whole: dict[str, list[list[float]]] = {OFF: [], AGAIN: [], ON: []}
    with arms(folder, n_threads) as runtimes:
        for runtime in runtimes.values():
            answer(runtime, 0, n_tokens)  # warm
        for number in range(n_rounds):
            for name in rng.permutation(list(runtimes)):
                per_token, request = answer(runtimes[str(name)], number, n_tokens)
                tokens[str(name)].append([per_token])
                whole[str(name)].append([request])
    of_token = {name: paired_ratio(tokens[name], tokens[OFF]) for name in (AGAIN, ON)}
    of_request = {name: paired_ratio(whole[name], whole[OFF]) for name in (AGAIN, ON)}
    return {
        "rounds": n_rounds,
        "answer_tokens": n_tokens,
        "token_ms_off": round(1e3 * float(np.median(tokens[OFF])), 4),
        "request_ms_off": round(1e3 * float(np.median(whole[OFF])), 3),
        "token_ratio": {name: _said(ratio) for name, ratio in of_token.items()},
        "request_ratio": {name: _said(ratio) for name, ratio in of_request.items()},
        "met": of_token[ON].median <= MOST,
    }


def _said(ratio: Ratio) -> list[float]:
    """Median, and the bounds of its 95 % interval."""
    return [round(each, 4) for each in (ratio.median, ratio.lower, ratio.upper)]
