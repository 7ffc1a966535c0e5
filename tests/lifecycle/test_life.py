"""What outlives a process, going back on purpose, and the one switch that turns all steering off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from scope_runtime import Runtime, ScopeError
from scope_runtime.errors import PolicyErrors
from scope_runtime.lifecycle import (
    Cause,
    Lifecycle,
    Options,
    Source,
    StaleRevision,
    State,
    StateError,
)
from scope_runtime.lifecycle.build import Bench, Built
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.llama.engine import Generation
from scope_runtime.policy import load_policy, policy_revision
from scope_runtime.types import ModelShape
from tests.conftest import Scope
from tests.lifecycle.conftest import PROMPT, Site, until
from tests.support.live import HookTarget, InProcess
from tests.support.random_model import SHAPES

ME = Cause("test", "me", "because")
QUIET = Options(poll_s=600.0, events=False)  # nothing happens by itself


def revision(site: Site) -> str:
    return policy_revision(load_policy(site.policy))


def in_force(runtime: Runtime) -> str:
    return runtime.generate(PROMPT, max_tokens=2, temperature=0.0).revisions[-1].revision


def state_of(site: Site) -> Path:
    return site.folder.parent / "state"


# -- over a restart


def test_behaviour_16_a_restart_with_the_source_gone_comes_back_steering(site: Site) -> None:
    with site.running(QUIET) as runtime:
        good = in_force(runtime)
        steered = runtime.generate(PROMPT, max_tokens=8, temperature=0.0).tokens
    shutil.rmtree(site.folder)
    with site.running(QUIET) as runtime:
        assert in_force(runtime) == good
        assert runtime.generate(PROMPT, max_tokens=8, temperature=0.0).tokens == steered
        whats = [e.what for e in runtime.events() if e.kind == "policy"]
        assert whats == ["refused", "restored"]


@pytest.mark.parametrize("damage", ["policy", "pack", "added", "set.json"])
def test_behaviour_16_what_was_kept_is_checked_again(site: Site, damage: str) -> None:
    with site.running(QUIET):
        pass
    shutil.rmtree(site.folder)
    (kept,) = (state_of(site) / "sets").iterdir()
    if damage == "policy":
        path = kept / "files" / "policy.yaml"
        path.write_text(path.read_text().replace("alpha: 0.5", "alpha: 0.9"))
    elif damage == "pack":
        path = kept / "files" / "pack.gguf"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "added":
        (kept / "files" / "more.yaml").write_text(site.text)
    else:
        # Whoever changes a file and its digest with it has still not made what bears the revision.
        path = kept / "files" / "policy.yaml"
        about = json.loads((kept / "set.json").read_text())
        path.write_text(site.text_with("0.9"))
        about["files"]["policy.yaml"] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        (kept / "set.json").write_text(json.dumps(about))
    with pytest.raises(StateError), site.running(QUIET):
        pass


def test_a_kept_set_that_was_damaged_is_kept_anew_while_its_source_is_there(site: Site) -> None:
    with site.running(QUIET) as runtime:
        good = in_force(runtime)
    (kept,) = (state_of(site) / "sets").iterdir()
    (kept / "files" / "pack.gguf").write_bytes(b"")
    with site.running(QUIET):
        pass
    shutil.rmtree(site.folder)
    with site.running(QUIET) as runtime:
        assert in_force(runtime) == good


def test_fail_open_starts_unsteered_where_nothing_that_is_kept_can_be_used(site: Site) -> None:
    with site.running(QUIET):
        pass
    (kept,) = (state_of(site) / "sets").iterdir()
    (kept / "files" / "pack.gguf").write_bytes(b"")
    site.policy.write_text("nonsense: [", encoding="utf-8")
    with pytest.raises(StateError, match="a kept file was altered"), site.running(QUIET):
        pass
    with site.running(Options(poll_s=600.0, events=False, fail="open")) as runtime:
        assert in_force(runtime) == "none"
        assert [e.what for e in runtime.events() if e.kind == "policy"] == ["refused", "refused"]


def test_two_processes_do_not_share_a_state_directory(site: Site) -> None:
    host = socket.gethostname()
    shared = pytest.raises(
        StateError,
        match=rf"state: another process uses the state directory; found process {os.getpid()} on {host}",
    )
    with site.running(QUIET), shared, site.running(QUIET):
        pass
    with site.running(QUIET):  # who has ended holds nothing
        pass


def test_what_a_killed_process_had_half_written_is_dropped(site: Site) -> None:
    with site.running(QUIET) as runtime:
        good = in_force(runtime)
    state = state_of(site)
    for folder in ("sets/.0123.1.tmp/files", "bundles/.new-x/files"):
        (state / folder).mkdir(parents=True)
        (state / folder / "pack.gguf").write_bytes(bytes(1 << 16))
    (state / ".active.json.0123.tmp").write_text("{")
    (state / "mine.tmp").write_text("not ours")
    with site.running(QUIET) as runtime:
        assert in_force(runtime) == good
        assert sorted(path.name for path in state.rglob("*.tmp")) == ["mine.tmp"]
        assert not list((state / "bundles").iterdir())


def test_a_restart_with_a_bad_source_runs_the_last_good_one(site: Site) -> None:
    with site.running(QUIET) as runtime:
        good = in_force(runtime)
    site.policy.write_text("nonsense: [", encoding="utf-8")
    with site.running(QUIET) as runtime:
        assert in_force(runtime) == good
        site.replace(site.text_with("0.25"))
        assert runtime.hosted.lifecycle.reload(ME).revision == revision(site)


def test_only_so_many_sets_are_kept_and_the_one_in_force_is(site: Site) -> None:
    with site.running(Options(poll_s=600.0, events=False, keep=2)) as runtime:
        lifecycle = runtime.hosted.lifecycle
        for n in range(1, 5):
            site.replace(site.text_with(f"0.{n}"))
            lifecycle.reload(ME)
        assert lifecycle.state is not None
        kept = [k.revision for k in lifecycle.state.kept()]
        assert len(kept) == 2
        assert kept[0] == lifecycle.revision


# -- back, and not back


def test_behaviour_17_an_older_generation_is_refused_unless_rolled_back(site: Site) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        site.replace(site.text_with("0.3", generation=3))
        third = lifecycle.reload(ME).revision
        site.replace(site.text_with("0.4", generation=4))
        fourth = lifecycle.reload(ME).revision
        site.replace(site.text_with("0.3", generation=3))
        with pytest.raises(
            PolicyErrors,
            match=r"policy\.yaml:3:36: an older generation .* found 3; expected 4 or more\. To go back",
        ):
            lifecycle.reload(ME)
        assert in_force(runtime) == fourth
        assert lifecycle.rollback(ME).revision == third
        assert in_force(runtime) == third
        assert lifecycle.reload(ME).revision == third  # the old file is no longer an accident
    site.replace(site.text_with("0.2", generation=2))
    with site.running(QUIET) as runtime:  # and the count outlives the process
        assert in_force(runtime) == third


def test_a_rollback_holds_until_the_source_changes(site: Site) -> None:
    with site.running(QUIET) as runtime:
        first = runtime.hosted.lifecycle.revision
        site.replace(site.text_with("0.25"))
        runtime.hosted.lifecycle.reload(ME)
        runtime.hosted.lifecycle.rollback(ME, to=first)
        assert runtime.hosted.lifecycle.held
        assert not runtime.hosted.lifecycle.follow()
        assert in_force(runtime) == first
    with site.running(QUIET) as runtime:  # also over a restart
        assert in_force(runtime) == first
        assert runtime.hosted.lifecycle.held
        site.replace(site.text_with("0.125"))
        assert runtime.hosted.lifecycle.follow()
        assert in_force(runtime) == revision(site)
        assert not runtime.hosted.lifecycle.held


def test_back_is_to_what_was_in_force_before_and_never_to_what_was_rolled_back_from(
    site: Site,
) -> None:
    options = Options(poll_s=600.0, events=False, keep=3)
    with site.running(options) as runtime:
        lifecycle = runtime.hosted.lifecycle

        def deploy(alpha: str) -> str:
            site.replace(site.text_with(alpha))
            return lifecycle.reload(ME).revision

        first, second = deploy("0.1"), deploy("0.2")
        assert deploy("0.1") == first  # undone by hand
        assert lifecycle.rollback(ME).revision == second
        assert lifecycle.rollback(ME).revision == first  # and further back
        bad = deploy("0.3")
        assert lifecycle.rollback(ME).revision == first
        deploy("0.4")
    with site.running(options) as runtime:
        lifecycle = runtime.hosted.lifecycle
        assert lifecycle.rollback(ME).revision == first
        assert lifecycle.rollback(ME, to=bad).revision == bad  # on purpose, it can be had
        assert lifecycle.rollback(ME).revision == first


def test_a_rollback_that_cannot_be_kept_is_in_force_and_that_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        first = lifecycle.revision
        site.replace(site.text_with("0.25"))
        lifecycle.reload(ME)

        def full(*_: object) -> None:
            raise StateError("the disk is full")

        monkeypatch.setattr(lifecycle.state, "set_active", full)
        outcome = lifecycle.rollback(ME)
        assert outcome.revision == in_force(runtime) == first
        assert outcome.note == "in force, but not kept for a restart: the disk is full"


def test_a_damaged_note_of_what_was_in_force_is_written_anew(site: Site) -> None:
    with site.running(QUIET):
        pass
    note = state_of(site) / "active.json"
    for damaged in ("{", "{}", '{"revision": 5}'):
        note.write_text(damaged)
        with site.running(QUIET) as runtime:
            assert in_force(runtime) == revision(site)
            assert [e.what for e in runtime.events() if e.kind == "policy"] == [
                "refused",
                "swapped",
            ]
        assert json.loads(note.read_text())["revision"] == revision(site)


@pytest.mark.parametrize("damaged", ["{", "{}", "[]", '{"revision": 5, "number": 1}'])
def test_a_kept_set_without_a_sound_note_is_no_choice(site: Site, damaged: str) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        first = lifecycle.revision
        site.replace(site.text_with("0.25"))
        lifecycle.reload(ME)
        (state_of(site) / "sets" / first.removeprefix("sha256:") / "set.json").write_text(damaged)
        assert lifecycle.state is not None
        assert [kept.revision for kept in lifecycle.state.kept()] == [lifecycle.revision]
        for to in (None, first):
            with pytest.raises(StateError):
                lifecycle.rollback(ME, to=to)
        site.replace(site.text)
        assert lifecycle.reload(ME).note is None
        assert len(lifecycle.state.kept()) == 2  # what is in force again is kept again


def test_a_rollback_to_what_is_not_kept_is_refused(site: Site) -> None:
    with site.running(QUIET) as runtime:
        good = in_force(runtime)
        for to, message in (
            (None, "there is no earlier revision to go back to"),
            ("sha256:" + "0" * 64, "no such revision is kept"),
            ("../../etc", "no such revision is kept"),
        ):
            with pytest.raises(StateError, match=message):
                runtime.hosted.lifecycle.rollback(ME, to=to)
        assert in_force(runtime) == good


def test_behaviour_18_a_stale_if_match_is_refused(site: Site) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        first = lifecycle.revision
        site.replace(site.text_with("0.25"))
        second = lifecycle.reload(ME, if_match=first).revision
        with pytest.raises(StaleRevision):
            lifecycle.rollback(ME, to=first, if_match=first)
        assert lifecycle.revision == second


# -- the switch


def test_behaviour_21_one_switch_stops_all_steering_by_the_next_token_on_record(site: Site) -> None:
    """Also under ``apply: next-request``: the switch does not wait for requests to end."""
    site.policy.write_text(site.text.replace("spec:\n", "spec:\n  apply: next-request\n"))
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        good = lifecycle.revision
        stream = runtime.generate(PROMPT, max_tokens=12, seed=0, stream=True)
        next(stream)
        lifecycle.off(ME)
        *_, answer = stream
        assert isinstance(answer, Generation)
        assert [span.revision for span in answer.revisions] == [good, "none"]
        steered = answer.revisions[1].from_position - len(PROMPT)
        assert steered <= 2  # the piece that was out, and the token that was being decoded
        record = [e for e in runtime.events() if e.what == "off"][-1].record()
        assert (record["actor"], record["reason"], record["kind"]) == ("me", "because", "policy")
        assert in_force(runtime) == "none"
        lifecycle.on(Cause("test", "me again", "over"))
        assert in_force(runtime) == good
        record = [e for e in runtime.events() if e.what == "on"][-1].record()
        assert (record["actor"], record["reason"]) == ("me again", "over")


def test_behaviour_21_off_gives_what_no_policy_gives(site: Site) -> None:
    with Runtime(site.model, n_ctx=512, n_threads=1) as plain:
        unsteered = plain.generate(PROMPT, max_tokens=12, temperature=0.0).tokens
    with site.running(QUIET) as runtime:
        steered = runtime.generate(PROMPT, max_tokens=12, temperature=0.0).tokens
        runtime.hosted.lifecycle.off(ME)
        off = runtime.generate(PROMPT, max_tokens=12, temperature=0.0)
    assert off.tokens == unsteered != steered
    assert off.n_reused == 0


def test_behaviour_21_while_off_reloads_are_checked_and_wait(site: Site) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle
        lifecycle.off(ME)
        site.replace(site.text_with("0.25"))
        assert lifecycle.reload(ME).revision == revision(site)
        assert in_force(runtime) == "none"
        site.replace("nonsense: [")
        with pytest.raises(ScopeError):
            lifecycle.reload(ME)
        loaded = lifecycle.current.revision
        lifecycle.on(ME)
        assert in_force(runtime) == loaded


def test_behaviour_21_off_stays_off_over_a_restart(site: Site) -> None:
    with site.running(QUIET) as runtime:
        runtime.hosted.lifecycle.off(ME)
    with site.running(QUIET) as runtime:
        assert in_force(runtime) == "none"
        switch = runtime.hosted.lifecycle.switch
        assert switch is not None
        assert (switch.actor, switch.reason) == ("me", "because")
        runtime.hosted.lifecycle.on(ME)
        assert in_force(runtime) == revision(site)


def test_behaviour_21_a_file_is_a_switch(site: Site) -> None:
    with site.running() as runtime:
        lifecycle = runtime.hosted.lifecycle
        file = state_of(site) / "off.json"
        file.write_text("the incident of Friday", encoding="utf-8")
        until(lambda: lifecycle.switch is not None, "the file switches off")
        assert in_force(runtime) == "none"
        record = [e for e in runtime.events() if e.what == "off"][-1]
        assert record.detail["trigger"] == "file"
        file.unlink()
        until(lambda: lifecycle.switch is None, "its absence switches on")
        assert in_force(runtime) == revision(site)


def test_what_was_switched_off_without_a_file_is_not_switched_on_by_its_absence(
    site: Site, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    with site.running(QUIET) as runtime:
        lifecycle = runtime.hosted.lifecycle

        def full(*_: object) -> None:
            raise StateError("the disk is full")

        monkeypatch.setattr(lifecycle.state, "set_switch", full)
        done = scope("off", "--control", state_of(site).with_name("control.sock"))
        assert done.returncode == 0
        assert "OFF since" in done.stdout
        assert "note: off, but not kept for a restart: the disk is full" in done.stdout
        lifecycle.follow_switch()
        assert in_force(runtime) == "none"


def test_behaviour_21_a_state_directory_that_is_gone_switches_nothing_on(site: Site) -> None:
    shape = SHAPES["qwen3"]
    bench = Bench(ModelShape(shape.architecture, shape.n_layer, shape.n_embd))
    state = State(state_of(site))
    with closing(HookTarget(bench.shape)) as target:
        lifecycle = Lifecycle(
            target, Source(site.policy), bench, state, Options(), builder=InProcess(bench)
        )
        lifecycle.start()
        lifecycle.off(ME)
        shutil.rmtree(state.folder)
        lifecycle.follow_switch()
        site.replace(site.text_with("0.25"))
        lifecycle.reload(ME)  # it makes the directory again
        lifecycle.follow_switch()
        assert target.runs() == "none"
        state.switch_path.unlink()  # on purpose
        lifecycle.follow_switch()
        assert target.runs() == revision(site)


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def strange_json(path: Path) -> None:
    path.write_text('{"actor": ["me"], "reason": {"x": 1}, "time": 1}', encoding="utf-8")


@pytest.mark.parametrize("make", [directory, pipe, link_to_itself, strange_json])
def test_behaviour_21_whatever_lies_at_the_switch_means_off(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    state = State(tmp_path / "state")
    assert state.switch() is None
    make(state.switch_path)
    switch = state.switch()
    assert switch is not None
    assert isinstance(switch.reason, str)
    if make is directory:
        with pytest.raises(StateError, match=r"off\.json: cannot be removed"):
            state.set_switch(None)
    else:
        state.set_switch(None)
        assert state.switch() is None


class Slow(InProcess):
    """A builder that takes until it is let go."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.may, self.begun = Event(), Event()
        self.may.set()

    def build(self, source: Source, named: tuple[str, ...] = ()) -> Built:
        self.begun.set()
        self.may.wait()
        return super().build(source, named)


@pytest.mark.parametrize("way", ["signal", "file", "call"])
def test_behaviour_21_the_switch_waits_for_no_build(site: Site, way: str) -> None:
    shape = SHAPES["qwen3"]
    bench = Bench(ModelShape(shape.architecture, shape.n_layer, shape.n_embd))
    builder, state = Slow(bench), State(state_of(site))
    with closing(HookTarget(bench.shape)) as target:
        lifecycle = Lifecycle(
            target, Source(site.policy), bench, state, Options(poll_s=30.0), builder=builder
        )
        lifecycle.start()
        good = target.runs()
        with closing(Follower(lifecycle)) as follower:
            follower.start()
            builder.begun.clear()
            builder.may.clear()
            try:
                site.replace(site.text_with("0.25"))
                follower.ask_reload(ME)
                builder.begun.wait()
                if way == "signal":
                    follower.ask_off(ME)
                elif way == "file":
                    state.switch_path.touch()
                else:
                    lifecycle.off(ME)
                until(lambda: lifecycle.switch is not None, "it is off")
                assert target.runs() == "none"
                if way == "signal":
                    follower.ask_on(ME)
                    until(lambda: lifecycle.switch is None, "it is on")
                    assert target.runs() == good
            finally:
                builder.may.set()


def test_behaviour_21_a_burst_of_signals_locks_nothing_up(site: Site) -> None:
    """A handler may run in the middle of another, at any byte code; and the last one counts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with site.running(QUIET) as runtime:
            runtime.hosted.handle_signals()
            burst = f"""
import os, signal
for _ in range(3000):
    os.kill({os.getpid()}, signal.SIGUSR2)
    os.kill({os.getpid()}, signal.SIGUSR1)
"""
            subprocess.run([sys.executable, "-c", burst], check=True)
            until(lambda: runtime.hosted.lifecycle.switch is not None, "it is off")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_behaviour_21_a_fault_in_one_order_does_not_lose_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with site.running(QUIET) as runtime:
        follower = runtime.hosted.follower
        follower._do([lambda: 1 // 0, signal.SIGUSR1])
        assert runtime.hosted.lifecycle.switch is not None
    assert [each.exc_type for each in told] == [ZeroDivisionError]


def test_behaviours_15_and_21_signals_reload_and_switch(site: Site) -> None:
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with site.running(QUIET) as runtime:
            lifecycle = runtime.hosted.lifecycle
            runtime.hosted.handle_signals()
            site.replace(site.text_with("0.25"))
            os.kill(os.getpid(), signal.SIGHUP)
            until(lambda: lifecycle.revision == revision(site), "SIGHUP reloads")
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda: lifecycle.switch is not None, "SIGUSR1 switches off")
            assert in_force(runtime) == "none"
            os.kill(os.getpid(), signal.SIGUSR2)
            until(lambda: lifecycle.switch is None, "SIGUSR2 switches on")
            assert in_force(runtime) == revision(site)
            actors = [e.detail.get("actor") for e in runtime.events() if e.kind == "policy"]
            assert actors == ["start", "SIGHUP", "SIGUSR1", "SIGUSR2"]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_behaviour_20_a_record_counts_exempted_rules_apart(site: Site) -> None:
    exceptions = (
        "  exceptions: [{selector: {tenant: acme}, rules: [push], owner: ops, until: 2999-01-01}]\n"
    )
    site.policy.write_text(site.text + exceptions, encoding="utf-8")
    with site.running(QUIET) as runtime:
        answer = runtime.generate(PROMPT, max_tokens=2, labels={"tenant": "acme"})
        assert answer.report[-1].detail["exempted"] == ["tiny/push"]
        assert "exempted" not in runtime.generate(PROMPT, max_tokens=2).report[-1].detail
