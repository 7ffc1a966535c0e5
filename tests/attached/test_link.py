"""What a server that is gone leaves open, with a hook that says what a test wants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scope_runtime.attached.interface import SlotState
from scope_runtime.attached.link import Link
from scope_runtime.attached.programs import SlotPrograms
from scope_runtime.errors import HookError
from scope_runtime.events import RequestContext
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from tests.support.random_pack import write_control_vector

BEGUN = SlotState(
    slot=1,
    request_id=7,
    serial=3,
    first_serial=0,
    n_columns=0,
    n_unsteered=0,
    n_stray=2,
    answer_start=None,
    last_position=-1,
    abort=None,
    spans=(),
)


@dataclass
class Hook:
    """Attributes: ended: what `end` returns; None: the server is gone."""

    ended: SlotState | None
    alive: bool = True
    torn: bool = False
    n_unmatched: int = 4

    @property
    def status(self) -> Any:
        return SimpleNamespace(n_unmatched=self.n_unmatched)

    def end(self, slot: int) -> SlotState:
        if self.ended is None:
            raise HookError("the server is gone")
        return self.ended

    def slot(self, slot: int) -> SlotState:
        if self.torn:
            raise HookError("the server died while it wrote it")
        return replace(BEGUN, n_columns=9)


def link_of(hook: Hook) -> tuple[Link, Any]:
    link: Any = object.__new__(Link)
    link.hook = hook
    return link, SimpleNamespace(slot=1, begun=BEGUN, n_unmatched=4)


@pytest.mark.parametrize(
    ("changes", "n_unmatched", "told"),
    [
        ({}, 4, None),
        ({"n_unsteered": 5}, 4, "5 tokens were not steered"),
        ({"n_stray": 3}, 4, "1 tokens were computed for nobody"),
        ({}, 6, "2 hook points were missed"),
        ({"spans": None}, 4, "its policies changed more often than can be told"),
    ],
)
def test_what_was_not_steered_is_told(
    changes: dict[str, Any], n_unmatched: int, told: str | None
) -> None:
    link, request = link_of(Hook(replace(BEGUN, **changes), n_unmatched=n_unmatched))
    last, summed_up = link.end(request)
    assert link.unsteered(request, last, summed_up) == told


@pytest.mark.parametrize("torn", [False, True])
def test_an_answer_that_nobody_summed_up_is_not_called_steered(torn: bool) -> None:
    """All its tokens were there; then the server was killed, before it told what was done to them."""
    link, request = link_of(Hook(None, alive=False, torn=torn))
    last, summed_up = link.end(request)
    assert (last.n_columns, summed_up) == (0 if torn else 9, False)
    told = link.unsteered(request, last, summed_up)
    assert told == "llama-server was gone before it told what was done"


def test_what_a_hook_does_not_tell_that_is_there_is_not_called_steered() -> None:
    link, request = link_of(Hook(None))
    unsure: list[int] = []
    link.programs = SimpleNamespace(unsure=unsure.append)  # type: ignore[assignment]
    last, summed_up = link.end(request)
    assert unsure == [request.slot]
    assert link.unsteered(request, last, summed_up) == "its hook did not tell what was done"


class Late(Hook):
    """A hook that is at a long ubatch when it is asked first: it says nothing in time, and does it afterwards."""

    def __init__(self) -> None:
        super().__init__(None)
        self.requests: dict[int, int] = {}
        self.late = True

    def hold(self, blob: bytes) -> int:
        return 1

    def begin(self, slot: int, request_id: int, serial: int) -> SlotState:
        if slot in self.requests:
            raise HookError("a request is open on this slot")
        self.requests[slot] = request_id
        if self.late:
            self.late = False
            raise HookError("the server's hook did not answer within 60 s")
        return self.slot(slot)

    def end(self, slot: int) -> SlotState:
        if self.requests.pop(slot, None) is None:
            raise HookError("no request is open on this slot")
        return self.slot(slot)

    def slot(self, slot: int) -> SlotState:
        return replace(BEGUN, slot=slot, request_id=self.requests.get(slot))


def test_a_slot_of_which_nobody_knows_serves_the_next_request() -> None:
    """It would be refused for ever as one that has a request."""
    hook: Any = Late()
    programs = SlotPrograms(hook, 2, ProgramSource(None, ModelShape("qwen3", 4, 256)))
    identity = RequestContext({}, "r")
    with pytest.raises(HookError, match="did not answer"):
        programs.begin(1, 5, identity)
    *_, begun = programs.begin(1, 6, identity)
    assert begun.request_id == 6
    hook.end(1)
    programs.end(1)
    # A command that came too late to end one leaves nothing open either; one that was in time, nothing to end.
    programs.unsure(1)
    *_, begun = programs.begin(1, 7, identity)
    assert begun.request_id == 7


class Holding(Hook):
    """A hook that takes what it is given. ``assigned``: the latest programs of slots, all at once."""

    def __init__(self) -> None:
        super().__init__(None)
        self.held = 0
        self.released: list[int] = []
        self.assigned: dict[int, int] = {}

    @property
    def status(self) -> Any:
        return SimpleNamespace(n_ubatches=0)

    def hold(self, blob: bytes) -> int:
        self.held += 1
        return self.held

    def release(self, serial: int) -> None:
        self.released.append(serial)

    def begin(self, slot: int, request_id: int, serial: int) -> SlotState:
        return self.slot(slot)

    def assign(self, programs: dict[int, int]) -> None:
        self.assigned = programs


def test_a_trial_stays_under_its_own_policies_until_all_are_switched_off(tmp_path: Path) -> None:
    shape = ModelShape("qwen3", 4, 256)
    hook: Any = Holding()
    programs = SlotPrograms(hook, 2, ProgramSource(None, shape))
    trial = ProgramSource(pushing(tmp_path, "tryout"), shape)
    mine, *_ = programs.begin(0, 1, RequestContext({}, "r.with", trial))
    other, *_ = programs.begin(1, 2, RequestContext({}, "r2"))
    assert (mine.revision, other.revision) == (trial.revision, "none")
    everybody = ProgramSource(pushing(tmp_path, "everybody"), shape)
    programs.use(everybody, now=True)
    assert programs.program_of(0).revision == trial.revision
    assert programs.program_of(1).revision == everybody.revision
    assert {slot: programs.programs[serial].revision for slot, serial in hook.assigned.items()} == {
        0: trial.revision,
        1: everybody.revision,
    }
    programs.use(ProgramSource(None, shape, trials=False), now=True)
    assert {programs.program_of(slot).revision for slot in (0, 1)} == {"none"}
    # And of what was tried nothing is held.
    programs.end(0)
    programs.end(1)
    assert (hook.held, sorted(hook.released)) == (4, [1, 2, 3])


def pushing(folder: Path, name: str) -> Policy:
    text = (
        f"apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {{name: {name}}}\n"
        "spec:\n  features:\n    v: {vector: v.gguf}\n"
        "  rules:\n    - {name: push, amplify: v, alpha: 2.0}\n"
    )
    write_control_vector(folder / "v.gguf", {2: np.ones(256, np.float32)})
    return parse_policy(text, file=str(folder / f"{name}.yaml"), root=folder)
