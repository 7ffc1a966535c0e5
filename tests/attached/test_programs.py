"""Programs on slots: who waits for a program that is loaded, and who does not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from scope_runtime.attached.programs import SlotPrograms
from scope_runtime.errors import HookError
from scope_runtime.events import RequestContext
from scope_runtime.native.hook import Span
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from tests.attached.test_link import BEGUN

HANGS_S = 300


class Hook:
    """Loads what a test lets it load."""

    alive = True
    status = SimpleNamespace(n_ubatches=0)

    def __init__(self) -> None:
        self.loading, self.go = threading.Event(), threading.Event()
        self.go.set()
        self.held: dict[int, bytes] = {}

    def hold(self, blob: bytes) -> int:
        self.loading.set()
        assert self.go.wait(HANGS_S)
        serial = max(self.held, default=0) + 1
        self.held[serial] = blob
        return serial

    def release(self, serial: int) -> None:
        del self.held[serial]

    def begin(self, slot: int, number: int, serial: int) -> Any:
        assert serial in self.held
        return replace(BEGUN, slot=slot, request_id=number)

    def assign(self, serials: dict[int, int]) -> None:
        assert set(serials.values()) <= set(self.held)

    def slot(self, slot: int) -> Any:
        return replace(BEGUN, slot=slot, request_id=None)


class Source:
    """A program for each label."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.program = self._of("")

    def _of(self, name: str) -> Any:
        return SimpleNamespace(digest=name, revision=self.revision, blob=name.encode())

    def for_request(self, labels: dict[str, str], request_id: str) -> Any:
        return self._of(labels["of"])

    def share(self, labels: dict[str, str], request_id: str) -> Any:
        return None


def of(name: str) -> RequestContext:
    return RequestContext({"of": name}, "r")


def test_nobody_waits_for_somebody_elses_program() -> None:
    hook: Any = Hook()
    programs = SlotPrograms(hook, 3, Source("one"))  # type: ignore[arg-type]
    programs.begin(0, 1, of("small"))
    hook.loading.clear()
    hook.go.clear()
    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(programs.begin, 1, 2, of("large"))
        assert hook.loading.wait(HANGS_S)
        assert programs.begin(2, 3, of("small"))[0].digest == "small"
        assert programs.program_of(0).digest == "small"
        programs.end(0)
        assert not large.done()
        hook.go.set()
        assert large.result()[0].digest == "large"


def test_what_a_swap_has_loaded_is_there_when_it_comes() -> None:
    """Though requests end meanwhile, each of which lets go of what nobody runs under."""
    hook: Any = Hook()
    programs = SlotPrograms(hook, 2, Source("one"))  # type: ignore[arg-type]
    for slot in range(2):
        programs.begin(slot, slot, of(f"{slot}"))
    hold = hook.hold

    def hold_then_end(blob: bytes) -> int:
        serial: int = hold(blob)
        if blob == b"1":
            programs.end(0)
        return serial

    hook.hold = hold_then_end
    programs.use(Source("two"), now=True)  # type: ignore[arg-type]
    assert programs.program_of(1).revision == "two"
    assert sorted(hook.held.values()) == [b"", b"0", b"1"]


def test_a_swap_gives_a_slot_the_program_of_the_request_that_it_has_by_then() -> None:
    programs = SlotPrograms(Hook(), 1, Source("one"))  # type: ignore[arg-type]
    programs.begin(0, 1, of("mine"))

    class Two(Source):
        changed = False

        def for_request(self, labels: dict[str, str], request_id: str) -> Any:
            if not self.changed:
                self.changed = True
                programs.end(0)
                programs.begin(0, 2, of("theirs"))
            return super().for_request(labels, request_id)

    programs.use(Two("two"), now=True)  # type: ignore[arg-type]
    now = programs.program_of(0)
    assert (now.digest, now.revision) == ("theirs", "two")


def test_what_a_request_ran_under_stays_known_until_it_is_over() -> None:
    """Its spans name it then; another's end comes before."""
    programs = SlotPrograms(Hook(), 2, Source("one"))  # type: ignore[arg-type]
    for slot in range(2):
        programs.begin(slot, slot, of("same"))
    (serial,) = (n for n, program in programs.programs.items() if program.digest == "same")
    programs.use(Source("two"), now=True)  # type: ignore[arg-type]
    programs.end(1)
    assert programs.programs[serial].revision == "one"
    programs.end(0)
    assert {program.revision for program in programs.programs.values()} == {"two"}


def test_a_request_that_ends_in_the_middle_of_a_swap_stops_nothing() -> None:
    programs = SlotPrograms(Hook(), 2, Source("one"))  # type: ignore[arg-type]
    programs.begin(0, 1, of("first"))

    class Two(Source):
        n_asked = 0

        def for_request(self, labels: dict[str, str], request_id: str) -> Any:
            self.n_asked += 1
            if self.n_asked == 1:
                programs.begin(1, 2, of("second"))
            else:  # when only what has begun since is still to be compiled
                programs.end(0)
            return super().for_request(labels, request_id)

    now: Any = Two("two")
    programs.use(now, now=True)
    assert now.n_asked == 2
    assert programs.source is now
    assert programs.program_of(1).revision == "two"


@pytest.mark.parametrize("fails", ["release", "slot"])
def test_a_server_that_is_killed_while_a_request_ends_does_not_fail_the_end(fails: str) -> None:
    """It was there when the end began; what the spans of its slots named stays known."""
    hook: Any = Hook()
    programs = SlotPrograms(hook, 2, Source("one"))  # type: ignore[arg-type]
    for slot in range(2):
        programs.begin(slot, slot, of(f"{slot}"))
    serials = {program.digest: serial for serial, program in programs.programs.items()}
    programs.use(Source("two"), now=False)  # type: ignore[arg-type]
    hook.slot = lambda slot: replace(BEGUN, slot=slot, spans=(Span(0, 9, serials[f"{slot}"]),))

    def killed(_: int) -> Any:
        hook.alive = False
        raise HookError("the server is gone")

    setattr(hook, fails, killed)
    programs.end(0)
    assert not hook.alive
    assert {programs.programs[serials[name]].digest for name in "01"} == {"0", "1"}
    programs.end(1)


def test_a_swap_is_in_force_though_nothing_of_the_old_source_is_let_go_of() -> None:
    """What is held for nobody harms nobody; a program that may be gone is loaded again where it is wanted."""
    hook: Any = Hook()
    programs = SlotPrograms(hook, 2, Source("one"))  # type: ignore[arg-type]
    programs.begin(0, 1, of("small"))
    release = hook.release

    def applied_too_late(serial: int) -> None:
        release(serial)
        raise HookError("the server's hook did not answer within 60 s")

    hook.release = applied_too_late
    programs.use(Source("two"), now=True)  # type: ignore[arg-type]
    assert programs.program_of(0).revision == "two"
    programs.use(Source("one"), now=True)  # type: ignore[arg-type]
    assert programs.program_of(0).revision == "one"
    programs.begin(1, 2, of(""))  # refused by the stand-in where it is not held


def test_a_requests_first_program_is_that_of_its_first_token() -> None:
    hook: Any = Hook()
    programs = SlotPrograms(hook, 2, Source("one"))  # type: ignore[arg-type]
    for slot in range(2):
        programs.begin(slot, slot, of("same"))
    (began,) = (n for n, program in programs.programs.items() if program.digest == "same")
    programs.use(Source("two"), now=True)  # type: ignore[arg-type]
    changed = max(programs.programs)
    # The prompt of one was computed when the policies changed, that of the other was not.
    hook.slot = lambda slot: replace(BEGUN, slot=slot, serial=changed, first_serial=began * slot)
    assert [programs.first_of(slot).revision for slot in range(2)] == ["two", "one"]


def test_a_program_of_the_stand_in_source_is_real() -> None:
    """What these tests make up is what a source gives."""
    real = ProgramSource(None, ModelShape("qwen3", 4, 256))
    assert {"digest", "revision", "blob"} <= set(dir(real.program))
