"""A server that ends is started again, after longer and longer pauses; without a server in it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scope_runtime.attached import supervisor as module
from scope_runtime.attached.arguments import ServerCommand
from scope_runtime.attached.server import ServerFolder
from scope_runtime.attached.supervisor import Supervisor
from scope_runtime.errors import HookError
from scope_runtime.types import ModelShape
from tests.serve.conftest import MODEL

SHAPE = ModelShape("qwen3", 4, 256)
COMMAND = ServerCommand(Path(sys.executable), MODEL, ("-m", str(MODEL)))


class Pauses(threading.Event):
    """Takes no time; after so many pauses the supervisor is to end."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.taken: list[float] = []
        self._n = n

    def wait(self, timeout: float | None = None) -> bool:
        self.taken.append(timeout or 0.0)
        if len(self.taken) == self._n:
            self.set()
        return self.is_set()


class Folder:
    """Starts what the script says: True a server that has ended already, False none."""

    def __init__(self, script: list[bool]) -> None:
        self.script = script

    def adopt(self) -> tuple[None, None]:
        return None, None

    def start(self, shape: ModelShape) -> Any:
        if not self.script.pop(0):
            raise HookError("it does not come up")
        process = SimpleNamespace(pid=0, ended=lambda timeout_s: True, how="ended by SIGKILL")
        hook = SimpleNamespace(status=SimpleNamespace(n_ubatches=0))
        upstream = SimpleNamespace(answers=lambda within_s: True)
        return SimpleNamespace(process=process, hook=hook, upstream=upstream)

    def end(self, server: Any) -> None: ...

    def close_starts(self) -> None: ...

    def close(self) -> None: ...


class Keeper:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def came(self, server: Any) -> None:
        self.told.append("came")

    def gone(self, server: Any, how: str) -> None:
        self.told.append(how)

    def failed(self, error: Exception) -> None:
        self.told.append(str(error))


def test_pauses_grow_and_every_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder([True, False, False, True, False])
    make: Callable[..., Any] = lambda *_: folder  # noqa: E731
    monkeypatch.setattr(module, "ServerFolder", make)
    supervisor = Supervisor(COMMAND, SHAPE, Path("unused"), lambda line: None, (1.0, 2.0, 3.0))
    supervisor._closing = pauses = Pauses(5)
    keeper = Keeper()
    supervisor.begin(keeper)
    assert supervisor._thread is not None
    supervisor._thread.join()
    supervisor.close()
    failed, killed = "it does not come up", "ended by SIGKILL"
    assert keeper.told == ["came", killed, failed, failed, "came", killed, failed]
    assert pauses.taken == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_a_restart_that_was_asked_for_takes_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is no failure: the pauses after it begin anew."""
    folder = Folder([True, False, True, True, False])

    class Asks(Keeper):
        def came(self, server: Any) -> None:
            super().came(server)
            if len([each for each in self.told if each == "came"]) == 2:
                server.process.kill = lambda: None
                supervisor.restart(server)

    monkeypatch.setattr(module, "ServerFolder", lambda *_: folder)
    supervisor = Supervisor(COMMAND, SHAPE, Path("unused"), lambda line: None, (1.0, 2.0, 3.0))
    supervisor._closing = pauses = Pauses(4)
    keeper = Asks()
    supervisor.begin(keeper)
    assert supervisor._thread is not None
    supervisor._thread.join()
    supervisor.close()
    failed, killed = "it does not come up", "ended by SIGKILL"
    asked_for = "it is started again, as was asked"
    assert keeper.told == ["came", killed, failed, "came", asked_for, "came", killed, failed]
    assert pauses.taken == [1.0, 2.0, 2.0, 3.0]


def test_a_server_that_ends_while_it_starts_is_quoted(tmp_path: Path) -> None:
    code = "import sys; print('no room for the weights'); sys.exit(3)"
    command = ServerCommand(Path(sys.executable), MODEL, ("-c", code))
    folder = ServerFolder(tmp_path / "state", command, lambda line: None)
    try:
        with pytest.raises(HookError, match="did not start: exit status 3") as caught:
            folder.start(SHAPE)
        assert "no room for the weights" in str(caught.value)
        assert not list((tmp_path / "state").glob("control-*"))
        assert not (tmp_path / "state" / "server.json").exists()
    finally:
        folder.close()


def test_the_end_of_the_gateway_ends_a_start(tmp_path: Path) -> None:
    """However long the weights take to load."""
    code = "import signal; print('loading', flush=True); signal.pause()"
    command = ServerCommand(Path(sys.executable), MODEL, ("-c", code))
    loading = threading.Event()
    folder = ServerFolder(tmp_path / "state", command, lambda line: loading.set())
    told: list[str] = []

    def start() -> None:
        try:
            folder.start(SHAPE)
        except HookError as error:
            told.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    assert loading.wait(300)
    folder.close_starts()
    thread.join()
    with pytest.raises(HookError, match="the gateway is ending"):
        folder.start(SHAPE)
    folder.close()
    assert told == ["the gateway is ending"]
