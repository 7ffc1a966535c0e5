"""A stock llama-server with the hook preloaded, and requests on its slots."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scope_runtime.attached.shared import SharedHook
from scope_runtime.types import ModelShape
from tests.support.random_model import RandomModel
from tests.support.stock_server import ServerEnded, server_path

N_SLOTS = 4


class AttachedServer:
    """One that is running, reached over a Unix socket."""

    def __init__(self, path: Path, process: subprocess.Popen[str], folder: Path) -> None:
        self.socket = path
        self.process = process
        self.folder = folder
        self.lines: list[str] = []

    def log(self) -> str:
        """What it has written so far."""
        return "".join(self.lines)

    def complete(
        self, tokens: Sequence[int], slot: int, n_predict: int = 1, **more: Any
    ) -> dict[str, Any]:
        """The answer of ``/completion``: greedy, with token ids and the logprobs of the best few."""
        body = {
            "prompt": list(tokens),
            "id_slot": slot,
            "n_predict": n_predict,
            "temperature": 0.0,
            "n_probs": 5,
            "cache_prompt": False,
            "return_tokens": True,
            "ignore_eos": True,
        }
        answer: dict[str, Any] = self.ask("POST", "/completion", body | more)
        return answer

    def probe(self, tokens: Sequence[int], slot: int) -> object:
        """An `interface.Ask`."""
        answer = self.complete(tokens, slot)
        return answer["tokens"], answer.get("completion_probabilities")

    def ask(self, method: str, route: str, body: dict[str, Any] | None = None) -> Any:
        connection = self.connect()
        try:
            connection.request(
                method, route, json.dumps(body or {}), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"llama-server: {response.status} {answer}")
        return answer

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=120)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(120)
        connection.sock.connect(str(self.socket))
        return connection


def logprobs(answer: dict[str, Any]) -> list[list[float]]:
    """Of the best tokens, by place."""
    return [
        [each["logprob"] for each in place["top_logprobs"]]
        for place in answer["completion_probabilities"]
    ]


@contextmanager
def running_server(
    model: RandomModel, environment: dict[str, str], *more: str, folder: Path
) -> Iterator[AttachedServer]:
    """Starts one; ended at the end.

    Raises:
        ServerEnded: it did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="scope-") as short:
        path = Path(short) / "s.sock"
        command = [str(server_path()), "--model", str(model.path), "--host", str(path)]
        command += ["--threads", "1", "--ctx-size", str(256 * N_SLOTS), "--parallel", str(N_SLOTS)]
        command += ["--no-repack", "--cache-ram", "0", "--no-webui", "--slots", *more]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | environment,
        )
        assert process.stdout is not None
        server = AttachedServer(path, process, folder)
        log = server.lines
        reader: threading.Thread | None = None
        try:
            for line in process.stdout:
                log.append(line)
                if "model loaded" in line:
                    break
            else:
                raise ServerEnded("".join(log[-30:]))
            # Somebody must read on, or the server waits for its log to be taken.
            reader = threading.Thread(target=lambda: log.extend(process.stdout or ()), daemon=True)
            reader.start()
            yield server
        finally:
            process.terminate()
            process.wait()
            if reader is not None:
                reader.join()
            process.stdout.close()


@contextmanager
def attached_server(
    model: RandomModel, folder: Path, *more: str
) -> Iterator[tuple[AttachedServer, SharedHook]]:
    """A server with the hook in it, not proved yet, and its controller."""
    shape = ModelShape(model.shape.architecture, model.shape.n_layer, model.shape.n_embd)
    hook = SharedHook.create(folder, shape, timeout_s=60)
    try:
        with running_server(model, hook.environment, *more, folder=folder) as server:
            yield server, hook
    finally:
        hook.close()
