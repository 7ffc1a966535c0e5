"""When a server hangs, and when it only takes its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from scope_runtime.attached.signs import SignsOfLife, Used, used

LIMIT_S = 60.0
NOTHING = Used(0.0, 0)


@dataclass
class Server:
    """One that says and uses what a test wants, a fifth of a second at a look; asking it in vain takes its time."""

    now_s: float = 0.0
    n_ubatches: int = 0
    used: Used = NOTHING
    answers: bool = False
    asked: list[float] = field(default_factory=list)

    def answer(self, within_s: float) -> bool:
        self.asked.append(self.now_s)
        if not self.answers:
            self.now_s += within_s
        return self.answers

    def signs(self) -> SignsOfLife:
        return SignsOfLife(
            LIMIT_S, lambda: self.n_ubatches, lambda: self.used, self.answer, lambda: self.now_s
        )


def test_a_server_that_does_nothing_at_all_hangs_after_the_limit() -> None:
    server = Server()
    signs = server.signs()
    while not signs.hangs():
        assert server.now_s < LIMIT_S
        server.now_s += 0.2
    assert LIMIT_S <= server.now_s < LIMIT_S + LIMIT_S / 4
    assert len(server.asked) > 1


@pytest.mark.parametrize(
    "sign",
    [
        lambda s: setattr(s, "n_ubatches", s.n_ubatches + 1),
        lambda s: setattr(s, "used", replace(s.used, cpu_s=s.used.cpu_s + 0.3)),
        lambda s: setattr(s, "used", replace(s.used, n_read=s.used.n_read + 1)),
        lambda s: setattr(s, "answers", True),
    ],
    ids=["a batch", "a processor", "a page off a disk", "an answer"],
)
def test_any_sign_will_do_however_rare(sign) -> None:  # type: ignore[no-untyped-def]
    """A batch may take minutes on a slow machine."""
    server = Server()
    signs = server.signs()
    for _ in range(20):
        until_s = server.now_s + 0.6 * LIMIT_S
        while server.now_s < until_s:
            assert not signs.hangs()
            server.now_s += 0.2
        sign(server)


def test_what_it_takes_to_be_asked_is_no_sign() -> None:
    server = Server()
    signs = server.signs()
    while not signs.hangs():
        server.used = replace(server.used, cpu_s=0.001 * server.now_s)
        server.now_s += 0.2
    assert server.now_s < 1.25 * LIMIT_S


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The whole container was paused."""
    server = Server()
    signs = server.signs()
    server.now_s += 24 * 3600
    assert not signs.hangs()


BUSY = "import time\nuntil = time.process_time() + 0.5\nwhile time.process_time() < until: pass\n"


def test_what_a_process_uses_is_seen() -> None:
    code = BUSY + "print('worked', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"worked\n"
        worked = used(child.pid)
        assert worked.cpu_s >= 0.4
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        stopped = used(child.pid)
        assert used(child.pid) == stopped
        child.kill()
    assert used(child.pid) == NOTHING
