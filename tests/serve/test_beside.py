"""The context that is opened beside a server: once, for as long as somebody reads, and of that server's model alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.errors import ModelError, UsageError
from scope_runtime.llama.checks import check_model
from scope_runtime.select import ProgramSource
from scope_runtime.serve.beside import Beside
from scope_runtime.types import ModelShape
from tests.serve.conftest import HANGS_S, MODEL

SOURCE = ProgramSource(None, ModelShape("qwen3", 4, 256))


class FakeRuntime:
    """Attributes: taken: what was in force, reading by reading."""

    model = MODEL
    model_digest = "sha256:abc"

    def __init__(self) -> None:
        self.taken: list[ProgramSource] = []
        self.closed = threading.Event()

    def take_up(self, source: ProgramSource) -> None:
        assert not self.closed.is_set()
        self.taken.append(source)

    def close(self) -> None:
        self.closed.set()


class Opener:
    """Opens runtimes, which are kept."""

    def __init__(self) -> None:
        self.runtimes: list[FakeRuntime] = []

    def __call__(self, model: Path) -> Any:
        self.runtimes.append(FakeRuntime())
        return self.runtimes[-1]


def beside(
    opener: Opener,
    *,
    arguments: Sequence[str] = (),
    digest: str = FakeRuntime.model_digest,
    source: Callable[[], ProgramSource] = lambda: SOURCE,
    idle_s: float = HANGS_S,
) -> Beside:
    return Beside(
        ServerCommand(Path("llama-server"), MODEL, tuple(arguments)),
        digest,
        source,
        opened=opener,
        idle_s=idle_s,
    )


def test_it_is_opened_by_the_first_reading_and_stays_for_the_next() -> None:
    opener = Opener()
    other = ProgramSource(None, ModelShape("qwen3", 4, 256))
    now = iter([SOURCE, other])
    reads = beside(opener, source=lambda: next(now))
    assert opener.runtimes == []
    for _ in range(2):
        with reads.reading() as reader:
            assert reader.model == MODEL
    (runtime,) = opener.runtimes
    assert runtime.taken == [SOURCE, other]
    reads.close()
    assert runtime.closed.is_set()
    reads.close()


def test_it_is_closed_when_nobody_reads_and_opened_again() -> None:
    opener = Opener()
    reads = beside(opener, idle_s=0)
    for n in (1, 2):
        with reads.reading():
            assert len(opener.runtimes) == n
            assert not opener.runtimes[-1].closed.is_set()
        assert opener.runtimes[-1].closed.wait(HANGS_S)
    reads.close()


def test_an_end_that_comes_while_somebody_reads_again_is_for_the_next_one() -> None:
    opener = Opener()
    reads = beside(opener)
    for _ in range(2):
        with reads.reading():
            pass
    reads._end_idle(1)  # the first reading's, which waited for the second to end
    assert not opener.runtimes[0].closed.is_set()
    reads._end_idle(2)
    assert opener.runtimes[0].closed.is_set()
    reads.close()


def test_another_model_than_the_server_s_is_not_read() -> None:
    reads = beside(Opener(), digest="sha256:def")
    with pytest.raises(ModelError) as caught, reads.reading():
        pass
    assert str(caught.value) == (
        f"{MODEL}: this is not the file any more that llama-server loaded; found sha256:abc; expected sha256:def"
    )
    reads.close()
    with pytest.raises(UsageError, match="this process is ending"), reads.reading():
        pass


def test_what_it_takes_is_said() -> None:
    info = check_model(MODEL)
    assert info.kv_bytes is not None
    assert info.n_ctx_train is not None
    tokens = min(4096, info.n_ctx_train)
    said = beside(Opener()).reads.words
    assert f"{round(info.kv_bytes * tokens / 2**20)} MiB for {tokens:,} tokens of context" in said
    assert f"its weights' {round(info.file_bytes / 2**20)} MiB are mapped" in said


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["-t", "2", "--lora", "a.gguf"], "--lora"),
        (["--override_kv", "a=int:1"], "--override-kv"),
        (["--rope-freq-base", "20000"], "--rope-freq-base"),
    ],
)
def test_a_server_that_computes_something_else_than_its_file_is_not_read_beside(
    arguments: list[str], flag: str
) -> None:
    opener = Opener()
    reads = beside(opener, arguments=arguments)
    assert reads.reads.why_not == (
        f"llama-server was started with {flag}: what the model file itself computes is not what its answers come from."
    )
    with pytest.raises(UsageError, match=f"llama-server was started with {flag}"), reads.reading():
        pass
    assert opener.runtimes == []
