"""Many short requests of two tenants while policies reload and clients hang up; every answer against its record.

python -m tests.serve.soak 10000
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.serve.conftest import CONFIG, OTHER, USER, Server, furnish, serving

CLIENTS = 8
RELOAD_S = 0.2
HANG_UP = 0.05
PROMPTS = ("the sea is", "The river", "a small city")


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        answers: request id to what the response said of the policies.
        failed: whatever was no answer and no hang-up.
        rss_mib: of the server, before and after.
    """

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    n_hung_up: int = 0
    n_reloads: int = 0
    rss_mib: list[int] = field(default_factory=list)

    def wrong(self, records: list[dict[str, Any]]) -> list[str]:
        """Requests whose response and record differ, or that have not exactly one record."""
        spans: dict[str, list[Any]] = {}
        for record in records:
            if record["what"] == "summary":
                spans.setdefault(record["request_id"], []).append(record["revisions"])
        return [
            name for name, told in self.answers.items() if spans.get(name) != [told["revisions"]]
        ]

    @property
    def n_mixed(self) -> int:
        """Answers whose policies changed under way."""
        return sum(len(told["revisions"]) > 1 for told in self.answers.values())


async def _ask(client: httpx.AsyncClient, number: int, seen: Seen) -> None:
    chance = random.Random(number)
    name = f"soak-{number}"
    asked = {
        "prompt": f"{chance.choice(PROMPTS)} {chance.randrange(3)}",
        "max_tokens": chance.randrange(1, 12),
        "stream": chance.random() < 0.5,
    }
    head = {"x-request-id": name}
    if chance.random() < HANG_UP:
        seen.n_hung_up += 1
        asked |= {"stream": True, "max_tokens": 50}
        with contextlib.suppress(httpx.HTTPError):
            async with client.stream("POST", "/completions", json=asked, headers=head) as stream:
                async for _ in stream.aiter_lines():
                    break
        return
    response = await client.post("/completions", json=asked, headers=head)
    if response.status_code != 200:
        seen.failed.append(f"{name}: {response.status_code} {response.text}")
    elif asked["stream"]:
        *_, last, end = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        if end == "[DONE]":
            seen.answers[name] = json.loads(last)["scope"]
        else:
            seen.failed.append(f"{name}: {end}")
    else:
        seen.answers[name] = response.json()["scope"]


async def _reload(server: Server, seen: Seen) -> None:
    policy = server.folder / "policies" / "english-only.yaml"
    text = policy.read_text(encoding="utf-8")
    while True:
        seen.n_reloads += 1
        new = policy.with_name(".new")
        generation = f"generation: {seen.n_reloads + 1}"
        new.write_text(text.replace("generation: 1", generation), encoding="utf-8")
        new.rename(policy)
        await asyncio.sleep(RELOAD_S)


def _rss_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


async def soak(server: Server, n_requests: int) -> Seen:
    """Asks, reloads and hangs up; a server that answers nothing any more ends it by a time limit of each request."""
    seen = Seen()
    numbers = iter(range(n_requests))

    async def client(key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=120) as one:
            for number in numbers:
                if number in (n_requests // 10, n_requests - 1):
                    seen.rss_mib.append(_rss_mib(server.process.pid))
                await _ask(one, number, seen)

    reloading = asyncio.ensure_future(_reload(server, seen))
    try:
        await asyncio.gather(*(client(key) for key in (USER, OTHER) for _ in range(CLIENTS // 2)))
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
    return seen


def furnished(folder: Path) -> Path:
    """A site whose answers are computed four at a time."""
    assert "parallel: 2" in CONFIG
    furnish(folder, CONFIG.replace("parallel: 2", "parallel: 4"))
    return folder


def main(n_requests: int) -> int:
    """Runs it and prints what came of it; 1 if something is not as it must be."""
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(furnished(Path(folder) / "site")) as server,
    ):
        seen = asyncio.run(soak(server, n_requests))
        ended = server.stop()
        wrong = seen.wrong(server.records())
    sys.stdout.write(
        f"{len(seen.answers)} answers and {seen.n_hung_up} hang-ups in {time.monotonic() - began:.0f} s, "
        f"{seen.n_reloads} reloads, {seen.n_mixed} answers under two revisions or more\n"
        f"failed: {len(seen.failed)}; spans that differ from the record: {len(wrong)}; "
        f"memory {' then '.join(map(str, seen.rss_mib))} MiB; exit code {ended}\n"
    )
    return int(bool(seen.failed or wrong or ended))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
