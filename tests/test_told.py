"""Lines on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from scope_runtime.told import tell

MANY = """
import threading
from scope_runtime.told import tell

def talk(name):
    for n in range(400):
        tell(name * (n % 97 + 1))

threads = [threading.Thread(target=talk, args=(name,)) for name in "abcdefgh"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_lines_of_many_threads_are_whole() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=True, timeout=300
    )
    lines = done.stderr.splitlines()
    assert sorted(lines) == sorted(name * (n % 97 + 1) for name in "abcdefgh" for n in range(400))


def test_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    nobody = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", nobody)
    tell("who is there?")
    thread = threading.Thread(target=tell, args=("and now?",))
    thread.start()
    thread.join()
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        nobody.close()
