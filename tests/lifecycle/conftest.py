"""A runtime of the tiny model that follows a policy, and ways to wait for what it does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.lifecycle import Options
from scope_runtime.llama import library
from tests.conftest import Tiny

library.load()
PROMPT = [5, 17, 33, 80, 41, 60, 77]
DEADLINE_S = 60
BY_EVENTS = Options(poll_s=30.0)  # digests are compared so seldom that only events tell


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition; the deadline is there to end a test that would wait for ever."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Site:
    """A place with a policy, its pack and its vector, as an operator would have."""

    folder: Path
    policy: Path
    model: Path
    text: str

    def text_with(self, alpha: str = "0.5", **metadata: object) -> str:
        """The policy with another strength (so, another revision) and more metadata."""
        more = "".join(f", {key}: {value}" for key, value in metadata.items())
        return self.text.replace("alpha: 0.5", f"alpha: {alpha}").replace(
            "{name: tiny}", f"{{name: tiny{more}}}"
        )

    def replace(self, text: str, path: Path | None = None) -> None:
        """The way careful tools write: a new file, renamed over the old one."""
        path = path or self.policy
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.rename(path)

    @contextmanager
    def running(
        self, options: Options = BY_EVENTS, *, policy: Path | None = None
    ) -> Iterator[Runtime]:
        """Follows the policy, with a state directory and a control socket beside it."""
        with Runtime(
            self.model,
            policy or self.policy,
            watch=options,
            state=self.folder.parent / "state",
            control=self.folder.parent / "control.sock",
            n_ctx=512,
            n_threads=1,
        ) as runtime:
            yield runtime


@pytest.fixture
def site(tiny: Tiny, tmp_path: Path) -> Site:
    return make_site(tiny, tmp_path)


def make_site(tiny: Tiny, parent: Path) -> Site:
    """One in a folder ``policies``, with copies of what the tiny policy names."""
    folder = parent / "policies"
    folder.mkdir()
    for name in ("pack.gguf", "vector.gguf", "policy.yaml"):
        shutil.copy(tiny.policy.with_name(name), folder / name)
    policy = folder / "policy.yaml"
    return Site(folder, policy, tiny.model, policy.read_text(encoding="utf-8"))
