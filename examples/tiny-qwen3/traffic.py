"""Traffic for `scope drift`: held-out questions asked under a policy, their records in an audit log.

    python examples/tiny-qwen3/traffic.py --log audit.jsonl --kind english --requests 200
    python examples/tiny-qwen3/traffic.py --log audit.jsonl --kind english --kind fault --requests 150 --seed 2

The kinds are mixed evenly, in an order of chance with a fixed seed. Needs no PyTorch.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from evaluate import MODELS, POLICIES, ROOT, heldout

MAX_TOKENS = 40
SYSTEMS = ("", "You are a helpful assistant.")


def questions(kinds: Sequence[str], n: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Messages of ``n`` held-out questions, evenly of each kind, drawn with replacement."""
    draw = random.Random(seed)
    pools = [heldout(kind, 10_000) for kind in kinds]
    return [draw.choice(pools[i % len(pools)]).messages() for i in range(n)]


def send(
    log: Path,
    kinds: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    policy: Path = POLICIES / "english-only.yaml",
    model: Path = MODELS["shipped"],
) -> None:
    """Asks the model, at a temperature of 0.8 with seeds of their own; every request goes on record."""
    from scope_runtime import Runtime

    asked = questions(kinds, n, seed)
    with Runtime(model, policy, policy_root=ROOT, audit=log, n_ctx=256, n_threads=1) as runtime:
        for number, messages in enumerate(asked):
            runtime.chat(messages, max_tokens=MAX_TOKENS, seed=seed * 1_000_000 + number)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True, metavar="FILE")
    parser.add_argument("--kind", action="append", required=True, help="english, fault, chinese, …")
    parser.add_argument("--requests", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    send(given.log, given.kind, given.requests, seed=given.seed)
    print(f"{given.log}: {given.requests} requests")


if __name__ == "__main__":
    main()
