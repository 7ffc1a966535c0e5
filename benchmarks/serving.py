"""What steering costs behind the endpoint: 8 clients, 8 policies in flight, steered against unsteered in one run.

    python -m benchmarks.serving                        # half an hour; a stock llama-server, the hook preloaded
    python -m benchmarks.serving --direct               # the gateway against llama-server alone
    python -m benchmarks.serving --engine embedded
    python -m benchmarks.serving --quick                # a tiny model, to see that it runs

Every arm goes through the gateway, but ``direct``: another process of the same llama-server, without hook and gateway.
Blocks are short and rounds many: a machine's speed drifts by a third within minutes, and pairs are seconds apart.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.random_q4_model import QWEN3_0_6B, TINY, model_file  # noqa: E402
from benchmarks.report import machine  # noqa: E402
from scope_runtime.attached.arguments import NO_FOREIGN_KV  # noqa: E402
from scope_runtime.bench import AGAIN, OFF, ON  # noqa: E402
from scope_runtime.bench_served import Load, ServedArm, Way, load  # noqa: E402
from scope_runtime.files import cache_folder  # noqa: E402
from scope_runtime.packs import PackLayer, PackModel, write_pack  # noqa: E402
from scope_runtime.policy.model import GateKind  # noqa: E402
from tests.serve.conftest import serving  # noqa: E402
from tests.support.gguf_model import Shape  # noqa: E402

DIRECT = "direct"
N_POLICIES, N_FEATURES = 8, 8
DOSE = 0.02
N_CTX = 512
LEAST_THROUGHPUT, MOST_BETWEEN = 0.98, 1.10
"""What is asked of the arm ``on``, of the ratios to ``off`` themselves: their intervals are told beside them."""

ADMIN = "admin.sock"

CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {{path: {model}, ctx: {ctx}, threads: {threads}, parallel: {parallel}}}
  policy: {{path: policies, state: state}}
  audit: {{path: audit/events.jsonl}}
  serve: {{listen: ":0", admin: "unix:{admin}", labels: [team]}}
"""
POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: mute-{number}}}
spec:
  selector: {{team: t{number}}}
  features:
{features}
  rules:
    - {{name: mute, mute: [{names}]}}
"""


def furnish(folder: Path, model: Path, shape: Shape, threads: int, parallel: int) -> None:
    """A site with a policy for each of 8 teams: 8 features of its own, on one layer of all."""
    policies = folder / "policies"
    policies.mkdir(parents=True)
    config = CONFIG.format(
        model=model, ctx=N_CTX, threads=threads, parallel=parallel, admin=folder / ADMIN
    )
    (folder / "scope.yaml").write_text(config, encoding="utf-8")
    n, layer = N_POLICIES * N_FEATURES, shape.n_layer // 2
    rng = np.random.default_rng(1)
    scale = np.float32(shape.n_embd**-0.5)
    enc, dec = (rng.standard_normal((n, shape.n_embd), dtype=np.float32) * scale for _ in "ed")
    one = PackLayer(
        layer,
        np.arange(n),
        ("",) * n,
        enc,
        np.zeros(n, np.float32),
        dec * np.float32(DOSE),
        GateKind.RELU,
    )
    pack = PackModel(shape.architecture, shape.n_layer, shape.n_embd)
    write_pack(policies / "pack.gguf", pack, [one])
    for number in range(N_POLICIES):
        ids = range(number * N_FEATURES, (number + 1) * N_FEATURES)
        features = "\n".join(f"    f{i}: {{pack: pack.gguf, layer: {layer}, id: {i}}}" for i in ids)
        names = ", ".join(f"f{i}" for i in ids)
        text = POLICY.format(number=number, features=features, names=names)
        (policies / f"mute-{number}.yaml").write_text(text, encoding="utf-8")


def arguments_of(threads: int, parallel: int) -> tuple[str, ...]:
    """Of llama-server, with the gateway before it and without."""
    sizes = ("-np", str(parallel), "-c", str(N_CTX * parallel), "-t", str(threads))
    # Repacked weights crash llama.cpp on CPUs with AMX.
    return (*sizes, "--no-repack", "--no-webui")


@contextmanager
def plain_server(program: str, model: Path, *arguments: str) -> Iterator[str]:
    """llama-server without hook and gateway; where it is reached."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        root = f"http://127.0.0.1:{port}"
        while not _healthy(root):
            if process.poll() is not None:
                raise RuntimeError(f"llama-server ended with {process.returncode}")
            time.sleep(0.1)
        yield f"{root}/v1"
    finally:
        process.terminate()
        process.wait()


def _healthy(root: str) -> bool:
    try:
        return httpx.get(f"{root}/health").status_code == 200
    except httpx.TransportError:
        return False


def measure(options: argparse.Namespace, size: Load) -> tuple[tuple[ServedArm, ...], float | None]:
    """Starts what is compared, and puts the load on it; the arms, and seconds that the hook took of all of it."""
    shape = TINY if options.quick else QWEN3_0_6B
    model = model_file(shape, options.cache)
    with ExitStack() as open_, tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        furnish(site, model, shape, options.threads, size.n_clients)
        command: tuple[str, ...] = ()
        ways: list[Way] = []
        if options.engine == "llama-server":
            from tests.support.stock_server import server_path

            program = str(server_path())
            own = arguments_of(options.threads, size.n_clients)
            engine = ("--engine", "llama-server", "--llama-server", program)
            command = ("--config", "scope.yaml", *engine, "--", *own)
            if options.direct:
                # Flags as the gateway's: only gateway and hook differ.
                direct = open_.enter_context(plain_server(program, model, *own, *NO_FOREIGN_KV))
                ways.append(Way(DIRECT, direct))
        server = open_.enter_context(serving(site, *command))
        teams = tuple({"x-scope-labels": f"team=t{n}"} for n in range(N_POLICIES))
        ways += [Way(OFF, server.base_url), Way(AGAIN, server.base_url)]
        if not options.direct:
            ways.append(Way(ON, server.base_url, teams))
        arms = load(ways, size)
        return arms, None if options.direct else hook_seconds(site / ADMIN)


def hook_seconds(admin: Path) -> float:
    """What ``scope_hook_seconds_total`` says at this socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin))) as client:
        told = client.get("http://admin/metrics").raise_for_status().text
    families = text_string_to_metric_families(told)
    (seconds,) = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "scope_hook_seconds_total"
    ]
    return float(seconds)


def results_of(
    options: argparse.Namespace, size: Load, arms: Sequence[ServedArm], hook_s: float | None
) -> Any:
    """The figures as data, with what was asked of them."""
    found = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "engine": options.engine,
        "model": "tiny" if options.quick else "Qwen3-0.6B-shaped random Q4_0",
        "threads": options.threads,
        "load": asdict(size),
        "arms": [asdict(arm) for arm in arms],
    }
    for on in (arm for arm in arms if arm.name == ON):
        through, between = on.throughput_ratio, on.between_p99_ratio
        found |= {
            "policies": N_POLICIES,
            "features": N_FEATURES,
            # All that the hook did since the server started, by the answers' tokens of the arm on: a little too much.
            "hook_ms_per_answer_token": None if hook_s is None else hook_s * 1e3 / on.n_tokens,
            "asked": {"throughput_ratio": LEAST_THROUGHPUT, "between_p99_ratio": MOST_BETWEEN},
            "met": through is not None
            and between is not None
            and through.median >= LEAST_THROUGHPUT
            and between.median <= MOST_BETWEEN
            and not any(arm.n_failed for arm in arms),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the figures as JSON, and writes them where --out says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--engine", choices=("llama-server", "embedded"), default="llama-server")
    add("--direct", action="store_true", help="only the gateway against llama-server without one")
    add("--quick", action="store_true", help="a tiny model: figures mean nothing")
    add("--clients", type=int, default=8)
    add("--rounds", type=int, help="default: 50, quick: 2")
    add("--each", type=int, default=2, help="requests of a client in a round")
    add("--answer-tokens", type=int, default=32)
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the results")
    add("--cache", type=Path, default=cache_folder() / "benchmarks", help="folder for the model")
    options = parser.parse_args(arguments)
    if options.direct and options.engine != "llama-server":
        parser.error("--direct is for --engine llama-server")
    n_rounds = options.rounds or (2 if options.quick else 50)
    size = Load(
        n_clients=options.clients,
        n_requests=options.clients * options.each * n_rounds,
        n_prompt=4,
        n_answer=options.answer_tokens,
        n_rounds=n_rounds,
    )
    found = results_of(options, size, *measure(options, size))
    text = json.dumps(found, indent=1)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"serving-{options.engine}{'-direct' if options.direct else ''}.json"
    (options.out / name).write_text(f"{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
