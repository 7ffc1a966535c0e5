"""A gateway over an unmodified llama-server, two tenants with a policy each, and how tests ask it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.lifecycle.conftest import until
from tests.serve.conftest import CONFIG, USER, Server, furnish, serving
from tests.support.stock_server import server_path

STATE = CONFIG.replace("policy: {path: policies}", "policy: {path: policies, state: state}")
HANGS_SOON = STATE.replace("serve:\n", "serve:\n    engine_hangs_s: 6\n")
OPTIONS = ("-np", "4", "-c", "16384", "-t", "1", "--no-repack", "--no-webui")

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: {tenant}, generation: {generation}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  selector: {{tenant: {tenant}}}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: {feature}}}
  rules:
    - {{name: push, amplify: f, alpha: {alpha}}}
"""

WATCH = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: watch}
spec:
  model: {architecture: qwen3, layers: 4, width: 256}
  selector: {team: watched}
  features:
    f: {pack: packs/tiny-qwen3.gguf, layer: 2, id: 685}
  rules:
"""

ENDS = """\
    - {name: enough, alert: f, below: 100000, for: 5 tokens, when: {phase: generation}, actions: [log, abort]}
"""
"""A rule that ends every answer after a few tokens."""

ASKED = {"prompt": "the sea is", "max_tokens": 24, "temperature": 0}
LONG = {**ASKED, "max_tokens": 3900, "logit_bias": {"0": -100, "2": -100}, "stream": True}
ENDLESS = {**LONG, "max_tokens": 10**6}
"""Never ends by itself where the server shifts its context."""


def policy(tenant: str, feature: int, alpha: float, generation: int = 1) -> str:
    return POLICY.format(tenant=tenant, feature=feature, alpha=alpha, generation=generation)


def furnished(folder: Path, config: str = STATE) -> Path:
    """A folder with a policy for each of two tenants, and one for a team."""
    furnish(folder, config)
    policies = folder / "policies"
    (policies / "english-only.yaml").unlink()
    (policies / "acme.yaml").write_text(policy("acme", 767, 30), encoding="utf-8")
    (policies / "globex.yaml").write_text(policy("globex", 28, 30), encoding="utf-8")
    (policies / "watch.yaml").write_text(WATCH + ENDS, encoding="utf-8")
    return folder


@contextmanager
def attached(folder: Path, *more: str, wait: bool = True) -> Iterator[Server]:
    """``scope serve`` over a llama-server with these arguments of its own."""
    engine = ("--engine", "llama-server", "--llama-server", str(server_path()))
    with serving(
        folder, "--config", "scope.yaml", *engine, "--", *OPTIONS, *more, wait=wait
    ) as running:
        yield running


def ask(server: Server, key: str = USER, **changes: Any) -> dict[str, Any]:
    """A short answer, which must come."""
    with server.client(key) as client:
        response = client.post("/v1/completions", json={**ASKED, **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


def cached(answer: dict[str, Any]) -> int:
    """Tokens of the prompt that were not computed."""
    n: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return n


@contextmanager
def endless(server: Server, name: str, **changes: Any) -> Iterator[Iterator[str]]:
    """A request that computes for as long as this lasts; its events."""
    asked = {"json": {**ENDLESS, **changes}, "headers": {"x-request-id": name}}
    with server.client() as client, client.stream("POST", "/v1/completions", **asked) as stream:
        assert stream.status_code == 200, stream.read()
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        next(lines)
        yield lines
    wait_for_end(server, name)


def server_pid(server: Server, what: str = "started", n: int = 1) -> int:
    """Of the llama-server that was started, or adopted, as the n-th."""
    found = re.match(r"process (\d+)", server.wait_for(f"llama-server {what}: ", n))
    assert found is not None
    return int(found[1])


def server_pids(program: Path) -> list[int]:
    """Of every process that runs this program."""
    out = []
    for link in Path("/proc").glob("[0-9]*/exe"):
        with suppress(OSError):
            if link.readlink() == program:
                out.append(int(link.parent.name))
    return out


def runs(pid: int) -> bool:
    """Whether there is such a process. One that nobody has waited for is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(") ")[2][0] != "Z"


def summaries(server: Server, request_id: str) -> list[dict[str, Any]]:
    """What is on record of a request as a whole."""
    return [
        record
        for record in server.records()
        if record.get("request_id") == request_id and record["what"] == "summary"
    ]


def wait_for_end(server: Server, request_id: str) -> None:
    """Until a request that nobody waits for is on record."""
    until(lambda: bool(summaries(server, request_id)), "the request is on record")


def record_of(server: Server, request_id: str) -> dict[str, Any]:
    (found,) = summaries(server, request_id)
    return found
