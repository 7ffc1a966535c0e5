"""A stock llama-server, as it comes from llama.cpp, with nothing of ours in it: the last word on our files."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]


def server_path() -> Path:
    """The program; built first where it is not there yet, which takes minutes."""
    command = [sys.executable, str(ROOT / "scripts" / "get-llama-server")]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


class StockServer:
    """One that is running, reached over a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = path

    def logprobs(self, tokens: Sequence[int], n_vocab: int) -> NDArray[np.float64]:
        """Of every token of the vocabulary as the next one, (n_vocab,)."""
        answer = self._ask(
            "/completion",
            {
                "prompt": list(tokens),
                "n_predict": 1,
                "n_probs": n_vocab,
                "cache_prompt": False,
                # The answer leaves probabilities out where the token drawn is half a character; they
                # are those of the model, whatever is drawn.
                "temperature": 0.0,
                "logit_bias": [["a", 1e6]],
            },
        )
        out = np.full(n_vocab, np.nan)
        for each in answer["completion_probabilities"][0]["top_logprobs"]:
            out[each["id"]] = each["logprob"]
        return out

    def _ask(self, route: str, body: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection("localhost", timeout=120)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(120)
        connection.sock.connect(str(self._socket))
        try:
            connection.request(
                "POST", route, json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"llama-server: {response.status} {answer}")
        return answer


class ServerEnded(Exception):
    """llama-server ended before it served; the text is its log."""


@contextmanager
def stock_server(model: Path, *vectors: tuple[Path, float]) -> Iterator[StockServer]:
    """Starts one with control vectors at these scales; ended at the end.

    Raises:
        ServerEnded: it does not take the files.
    """
    # A socket's path must be short, which a test's own folder is not.
    with tempfile.TemporaryDirectory(prefix="scope-") as folder:
        path = Path(folder) / "s.sock"
        command = [str(server_path()), "--model", str(model), "--host", str(path)]
        command += ["--threads", "1", "--ctx-size", "256", "--parallel", "1", "--no-repack"]
        command += ["--cache-ram", "0", "--no-webui", "--no-warmup"]
        if vectors:
            scaled = ",".join(f"{file}:{scale!r}" for file, scale in vectors)
            command += ["--control-vector-scaled", scaled]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            log = []
            for line in process.stdout:
                log.append(line)
                if "model loaded" in line:
                    break
            else:
                raise ServerEnded("".join(log[-30:]))
            yield StockServer(path)
        finally:
            process.terminate()
            process.communicate()
