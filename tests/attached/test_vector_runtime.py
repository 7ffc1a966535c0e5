"""Other policies are another server: what is ended, what waits, what is put back; without a server in it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scope_runtime.attached import runtime as module
from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.link import Request
from scope_runtime.attached.upstream import EngineGone
from scope_runtime.attached.vector_hook import VectorHook, VectorSteering
from scope_runtime.attached.vector_runtime import VectorRuntime
from scope_runtime.errors import HookError, UsageError
from scope_runtime.lifecycle.types import Cause
from scope_runtime.llama.sampling import Sampling
from scope_runtime.llama.timing import Timing
from scope_runtime.program import Program, empty_program
from scope_runtime.types import ModelShape
from scope_runtime.vectors import read_control_vector
from tests.conftest import ROOT
from tests.serve.conftest import HANGS_S, MODEL
from tests.test_vectors_alone import PLAIN, built

POLICY = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: p, generation: {generation}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: 767}}
  rules:
    - {{name: push, amplify: f, alpha: {generation}}}
"""
CAUSE = Cause("test", "test")
SHAPE = ModelShape("qwen3", 4, 256)


class Process:
    """Runs until it is killed."""

    pid = 1

    def __init__(self) -> None:
        self.killed = threading.Event()

    def ended(self, timeout_s: float = 0.0) -> bool:
        return self.killed.is_set()

    def kill(self) -> None:
        self.killed.set()

    def close(self) -> None: ...


class Supervisor:
    """Starts servers that are made up, one when the one before was killed; ``fails``: how many do not start."""

    made: Supervisor

    def __init__(self, *_: Any, steering: VectorSteering, **__: Any) -> None:
        Supervisor.made = self
        self.steering = steering
        self.fails = 0
        self.servers: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.ended = threading.Event()
        self.folder: Path = steering._folder

    def begin(self, keeper: VectorRuntime) -> None:
        self.folder.mkdir()
        self._start(keeper)
        self.keeper = keeper

    def _start(self, keeper: VectorRuntime) -> None:
        while not self.ended.is_set():
            if self.fails:
                self.fails -= 1
                keeper.failed(HookError("no room for the weights"))
                continue
            hook = self.steering.create(self.folder / f"control-{len(self.servers)}", SHAPE)
            process = Process()
            hook.runs_in(process)  # type: ignore[arg-type]
            server = SimpleNamespace(
                process=process,
                hook=hook,
                adopted=False,
                upstream=SimpleNamespace(n_slots=2),
                close=lambda: None,
            )
            self.servers.append(server)
            keeper.came(server)  # type: ignore[arg-type]
            if not process.ended():
                return

    def restart(self, server: Any) -> None:
        if server.process.ended():
            return
        server.process.kill()

        def again() -> None:
            self.keeper.gone(server, "ended by SIGKILL")
            self._start(self.keeper)

        self.threads.append(threading.Thread(target=again))
        self.threads[-1].start()

    def kill(self) -> None: ...

    def close(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


@contextmanager
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VectorRuntime]:
    monkeypatch.setattr(module, "Supervisor", Supervisor)
    shutil.copytree(ROOT / "policies" / "packs", tmp_path / "packs")
    write(tmp_path, 1)
    runtime = VectorRuntime(
        ServerCommand(Path("llama-server"), MODEL, ()),
        tmp_path / "p.yaml",
        folder=tmp_path / "server",
        say=lambda line: None,
        drain_s=HANGS_S,
    )
    try:
        yield runtime
    finally:
        runtime.close()


def write(folder: Path, generation: int) -> None:
    (folder / "p.yaml").write_text(POLICY.format(generation=generation), encoding="utf-8")


def begin(runtime: VectorRuntime, slot: int) -> Request:
    return runtime.begin(slot, {}, f"on-{slot}", Sampling().settled(), Timing())


def end(runtime: VectorRuntime, request: Request) -> Any:
    said = {"n_prompt": 1, "n_reused": 0, "n_answer": 1, "prompt": "", "answer": ""}
    return runtime.end(request, "stop", **said)  # type: ignore[arg-type]


class Thread(threading.Thread):
    """Keeps what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.start()

    def run(self) -> None:
        try:
            self.result: Any = self._work()
        except Exception as error:
            self.result = error

    def wait(self) -> Any:
        self.join(HANGS_S)
        assert not self.is_alive()
        return self.result


def test_a_reload_waits_for_what_runs_and_what_comes_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, monkeypatch) as runtime:
        lifecycle = runtime.hosted.lifecycle
        old = lifecycle.revision
        first = begin(runtime, 0)
        write(tmp_path, 2)
        reload = Thread(lambda: lifecycle.reload(CAUSE))
        while runtime.trouble is None:
            reload.join(0.001)
        second = Thread(lambda: begin(runtime, 1))
        assert not Supervisor.made.servers[0].process.ended()
        ended = end(runtime, first)
        assert [span.revision for span in ended.revisions] == [old]
        assert reload.wait().changed
        assert runtime.trouble is None
        again = second.wait()
        new = lifecycle.revision
        assert [span.revision for span in end(runtime, again).revisions] == [new] != [old]
        assert [server.process.ended() for server in Supervisor.made.servers] == [True, False]


def test_a_server_that_is_killed_while_a_request_ends_costs_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, monkeypatch) as runtime:
        request = begin(runtime, 0)
        hook: Any = request.link.hook
        last_end = hook.end

        def end_then_die(slot: int) -> Any:
            state = last_end(slot)
            monkeypatch.setattr(hook, "slot", gone)
            return state

        def gone(slot: int) -> Any:
            raise HookError("the server is ended")

        monkeypatch.setattr(hook, "end", end_then_die)
        ended = end(runtime, request)
        assert [event.what for event in runtime.events()].count("summary") == 1
        assert [span.revision for span in ended.revisions] == [runtime.source.revision]
        assert not runtime.n_running


def test_off_waits_for_no_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which waits for an answer that does not end."""
    with opened(tmp_path, monkeypatch) as runtime:
        lifecycle = runtime.hosted.lifecycle
        old = lifecycle.revision
        running = begin(runtime, 0)
        write(tmp_path, 2)
        reload = Thread(lambda: lifecycle.reload(CAUSE))
        while runtime.trouble is None:
            reload.join(0.001)
        off = Thread(lambda: lifecycle.off(CAUSE))
        refused, _ = reload.wait(), off.wait()
        assert isinstance(refused, HookError)
        assert refused.message == "steering is switched off meanwhile"
        with pytest.raises(EngineGone):
            running.state  # noqa: B018
        assert [span.revision for span in end(runtime, running).revisions] == [old]
        unsteered = begin(runtime, 1)
        assert not unsteered.program.control_vectors
        assert not Supervisor.made.servers[-1].hook.arguments
        assert lifecycle.current.revision == old


def test_a_server_that_does_not_start_so_is_started_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, monkeypatch) as runtime:
        lifecycle = runtime.hosted.lifecycle
        old = lifecycle.revision
        Supervisor.made.fails = 1
        write(tmp_path, 2)
        with pytest.raises(HookError, match="those before stay") as caught:
            lifecycle.reload(CAUSE)
        assert caught.value.found == "no room for the weights"
        assert lifecycle.revision == runtime.source.revision == old
        assert [span.revision for span in end(runtime, begin(runtime, 0)).revisions] == [old]
        assert "swapped" in {event.what for event in runtime.events()}
        assert [event.what for event in runtime.events()].count("swapped") == 1


def test_another_model_file_ends_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, monkeypatch) as runtime:
        runtime._model_version = (1,)
        write(tmp_path, 2)
        with pytest.raises(HookError, match="the model's file is another one"):
            runtime.hosted.lifecycle.reload(CAUSE)
        assert not Supervisor.made.servers[0].process.ended()
        assert runtime.trouble is None


def test_nothing_is_tried_on_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        opened(tmp_path, monkeypatch) as runtime,
        pytest.raises(UsageError, match="one control vector for all"),
    ):
        runtime.compiled(runtime.source.policies)


def test_no_request_runs_under_what_the_server_was_not_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, monkeypatch) as runtime:
        link = begin(runtime, 0).link
        link.programs.source = runtime.hosted.lifecycle.nothing
        with pytest.raises(HookError, match="was not started with"):
            begin(runtime, 1)
        assert len(link.running) == 1


def program(tmp_path: Path) -> Program:
    return built(tmp_path, PLAIN).program


def test_the_file_is_the_programs_vector(tmp_path: Path) -> None:
    steered = program(tmp_path)
    hook = VectorSteering(tmp_path, lambda: steered).create(tmp_path / "control-1", SHAPE)
    option, path = hook.arguments
    assert option == "--control-vector"
    (layer,) = read_control_vector(path).layers
    assert layer == 3
    assert (read_control_vector(path).layers[3] == steered.control_vectors[3]).all()


def test_a_server_is_taken_over_under_its_own_program_alone(tmp_path: Path) -> None:
    steered = program(tmp_path)
    VectorSteering(tmp_path, lambda: steered).create(tmp_path / "control-1", SHAPE)
    hook = VectorSteering(tmp_path, lambda: steered).adopt(tmp_path / "control-1")
    assert isinstance(hook, VectorHook)
    assert hook.slot(0).spans is None  # nobody knows what it holds
    nothing = empty_program(256, 4, "qwen3")
    with pytest.raises(HookError, match="under other policies"):
        VectorSteering(tmp_path, lambda: nothing).adopt(tmp_path / "control-1")
    with pytest.raises(HookError, match="not started with a control vector"):
        VectorSteering(tmp_path, lambda: steered).adopt(tmp_path)


def test_a_name_that_llama_server_would_split_is_refused(tmp_path: Path) -> None:
    steered = program(tmp_path)
    with pytest.raises(UsageError, match="a comma for the end"):
        VectorSteering(tmp_path / "a,b", lambda: steered).write(steered)
