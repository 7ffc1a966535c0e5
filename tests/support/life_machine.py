"""The life of a policy as a state machine: operators' deeds and accidents in any order, against a model of the spec.

The model knows nothing of the lifecycle's code: it holds what lies at the source, what was good, what is kept, and
the rules of docs/operations.md. After each step what the hook runs must be what the model says, and status and
metrics must agree.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scope_runtime.errors import ScopeError
from scope_runtime.lifecycle import Cause, Lifecycle, Options, Source, State
from scope_runtime.lifecycle.build import Bench
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.report import status_data
from scope_runtime.lifecycle.types import Builder
from scope_runtime.metrics.collect import lifecycle_reader
from scope_runtime.policy import (
    load_policies,
    load_policy,
    named_files,
    policy_revision,
    set_revision,
)
from scope_runtime.select import ProgramSource
from tests.conftest import TINY_POLICY
from tests.support.live import HookTarget, InProcess

FAST = Path("/dev/shm")
ME = Cause("test", "me", "because")
NAMES = ("a.yaml", "b.yaml")
BAD_TEXTS = ("", "nonsense: [", TINY_POLICY.replace("mute:", "moot:"), TINY_POLICY + "\x00")
ALPHAS = ("0.25", "0.5", "0.75")


@dataclass(frozen=True, slots=True)
class Good:
    """A set of policies that can be in force: its revision and its generations by name."""

    revision: str
    generations: dict[str, int]


@dataclass
class Spec:
    """What docs/operations.md promises, in the fewest words.

    Attributes:
        loaded: the last good set; None before the first.
        kept: revisions that can be gone back to, in the order in which they first came into force.
        pile: what came into force one after the other, without what was rolled back from.
        highest: generation of each policy that later files must not fall below.
        held_against: what lay at the source when another set was chosen over it; outlives the process.
        failed: whether the latest attempt went wrong.
    """

    loaded: Good | None = None
    kept: list[Good] = field(default_factory=list)
    pile: list[Good] = field(default_factory=list)
    highest: dict[str, int] = field(default_factory=dict)
    off: bool = False
    held: bool = False
    held_against: list[bytes | None] | None = None
    failed: bool = False
    ok: int = 0
    refused: int = 0

    def runs(self) -> str:
        return "none" if self.off or self.loaded is None else self.loaded.revision

    def takes(self, there: Good | None) -> bool:
        """Whether what lies at the source may come into force."""
        return there is not None and all(
            generation >= self.highest.get(name, 0)
            for name, generation in there.generations.items()
        )

    def take(self, there: Good) -> None:
        self.loaded, self.held, self.held_against = there, False, None
        if there not in self.kept:
            self.kept.append(there)
        if self.pile[-1:] != [there]:
            self.pile.append(there)
        for name, generation in there.generations.items():
            self.highest[name] = max(generation, self.highest.get(name, 0))


class LifeMachine(RuleBasedStateMachine):
    """Deeds and accidents; a subclass says with what programs are built.

    Attributes:
        site: folder with ``pack.gguf``, ``other.gguf`` (another, sound pack) and ``vector.gguf``.
        bench: what programs are compiled for.
    """

    site: Path
    bench: Bench
    builder: Callable[[Bench], Builder] = InProcess

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-", dir=FAST if FAST.is_dir() else None))
        self.policies = self.folder / "policies"
        self.policies.mkdir()
        for name in ("pack.gguf", "vector.gguf"):
            shutil.copy(self.site / name, self.policies / name)
        self.spec = Spec()
        self.target: HookTarget | None = None
        self.life: Lifecycle | None = None
        self.seen: dict[str, bytes | None] = {}
        self.known: dict[object, Good | None] = {}

    def teardown(self) -> None:
        self._end()
        shutil.rmtree(self.folder)

    # -- what lies there

    def _there(self) -> Good | None:
        """What the source amounts to, apart from any lifecycle."""
        key = tuple(self._relevant().items())
        if key not in self.known:
            self.known[key] = self._amounts_to()
        return self.known[key]

    def _amounts_to(self) -> Good | None:
        try:
            policies = load_policies(self.policies)
            ProgramSource(policies, self.bench.shape)
            revisions = [policy_revision(policy) for policy in policies]
        except ScopeError:
            return None
        generations = {p.name: p.generation for p in policies if p.generation is not None}
        return Good(revisions[0] if len(revisions) == 1 else set_revision(revisions), generations)

    def _relevant(self) -> dict[str, bytes | None]:
        """The policies that lie there, and every file that those of them name which can be read."""
        if not self.policies.exists():
            return {".": None}
        names: set[str] = set()
        for name in NAMES:
            if (self.policies / name).exists():
                names.add(name)
                with suppress(ScopeError):
                    names |= {*named_files(load_policy(self.policies / name, files=False))}
        paths = {name: self.policies / name for name in sorted(names)}
        return {name: path.read_bytes() if path.exists() else None for name, path in paths.items()}

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """A change of the files, then one look at them, as the following thread would take."""
        yield
        self._look()

    def _look(self) -> None:
        assert self.life is not None
        changed = self._relevant() != self.seen
        assert self.life.follow() == changed
        if changed:
            self._attempted()

    def _attempted(self) -> None:
        """The model's side of a reload."""
        there = self._there()
        self.seen = self._relevant()
        if self.spec.takes(there):
            assert there is not None
            self.spec.take(there)
            self.spec.ok += 1
        else:
            self.spec.refused += 1
        self.spec.failed = not self.spec.takes(there)

    def _values(self) -> list[bytes | None]:
        """What lies there, wherever it lies."""
        return sorted(self._relevant().values(), key=lambda data: (data is None, data or b""))

    # -- start, end

    @initialize()
    def begin(self) -> None:
        self._write("a.yaml", "0.5", None)
        self._start()

    def _start(self) -> None:
        self.target = HookTarget(self.bench.shape)
        self.life = Lifecycle(
            self.target,
            Source(self.policies),
            self.bench,
            State(self.folder / "state", keep=1000),
            Options(fail="open"),
            builder=type(self).builder(self.bench),
        )
        self.life.start()
        self.spec.ok = self.spec.refused = 0
        self.spec.failed = False
        self.seen = self._relevant()
        if self.spec.held_against == self._values():
            self.spec.held = True
            return
        there = self._there()
        if self.spec.takes(there):
            assert there is not None
            self.spec.take(there)
        else:
            self.spec.held = False
            self.spec.failed, self.spec.refused = True, 1

    def _end(self) -> None:
        if self.life is not None:
            self.life.close()
        if self.target is not None:
            self.target.close()
        self.life = self.target = None

    def _write(self, name: str, alpha: str, generation: int | None) -> None:
        more = "" if generation is None else f", generation: {generation}"
        text = TINY_POLICY.replace("{name: tiny}", f"{{name: {name[0]}{more}}}")
        if name != "a.yaml":  # beside the first it may only add
            text = text.replace("mute: [one, two]", "alert: one, above: 1.0")
        new = self.policies / f".{name}.new"
        new.write_text(text.replace("alpha: 0.5", f"alpha: {alpha}"), encoding="utf-8")
        new.rename(self.policies / name)

    # -- deeds and accidents

    @rule(
        name=st.sampled_from(NAMES),
        alpha=st.sampled_from(ALPHAS),
        generation=st.one_of(st.none(), st.integers(0, 4)),
    )
    def edit(self, name: str, alpha: str, generation: int | None) -> None:
        """Also a generation that goes down."""
        with self._changed():
            self._write(name, alpha, generation)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(BAD_TEXTS))
    def edit_badly(self, name: str, text: str) -> None:
        with self._changed():
            (self.policies / name).write_text(text, encoding="utf-8")

    @rule(name=st.sampled_from(NAMES), at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def corrupt(self, name: str, at: int, bit: int) -> None:
        """A flipped bit: it may still be a policy, and then it is another one."""
        with self._changed():
            path = self.policies / name
            if path.exists() and (data := bytearray(path.read_bytes())):
                data[at % len(data)] ^= 1 << bit
                path.write_bytes(data)

    @rule(old=st.sampled_from(NAMES), new=st.sampled_from((*NAMES, "aside.txt")))
    def rename(self, old: str, new: str) -> None:
        with self._changed():
            if (self.policies / old).exists():
                (self.policies / old).rename(self.policies / new)

    @rule(name=st.sampled_from((*NAMES, "pack.gguf")))
    def delete(self, name: str) -> None:
        with self._changed():
            (self.policies / name).unlink(missing_ok=True)

    @rule()
    def delete_everything(self) -> None:
        shutil.rmtree(self.policies, ignore_errors=True)
        self._look()
        self.policies.mkdir()
        self._look()

    @rule(damage=st.sampled_from(("cut", "zeroed", "other", "mended")))
    def replace_the_pack(self, damage: str) -> None:
        with self._changed():
            whole = (self.site / "pack.gguf").read_bytes()
            data = {
                "cut": whole[: len(whole) // 2],
                "zeroed": bytes(len(whole)),
                "other": (self.site / "other.gguf").read_bytes(),
                "mended": whole,
            }[damage]
            (self.policies / "pack.gguf").write_bytes(data)
            if not (self.policies / "vector.gguf").exists():
                shutil.copy(self.site / "vector.gguf", self.policies)

    @rule()
    def reload(self) -> None:
        assert self.life is not None
        there = self._there()
        try:
            outcome = self.life.reload(ME)
        except ScopeError:
            assert not self.spec.takes(there)
        else:
            assert there is not None
            assert outcome.revision == there.revision
        self._attempted()

    @rule(back=st.integers(0, 3))
    def rollback(self, back: int) -> None:
        """To the revision before by default, or to any that is kept; it holds until the files change."""
        assert self.life is not None
        pile, kept = self.spec.pile, self.spec.kept
        if back == 0:
            good, to = pile[-2] if len(pile) > 1 else None, None
        else:
            good = kept[-back] if back <= len(kept) else None
            to = good.revision if good is not None else "sha256:" + "0" * 64
        try:
            self.life.rollback(ME, to=to)
        except ScopeError:
            assert good is None
            self.spec.refused += 1
            self.spec.failed = True
            return
        assert good is not None
        while pile and good in pile and pile[-1] != good:
            pile.pop()
        if good not in pile:
            pile.append(good)
        self.spec.loaded, self.spec.held = good, True
        self.spec.highest |= good.generations
        self.seen = self._relevant()
        self.spec.held_against = self._values()

    @rule()
    def off(self) -> None:
        assert self.life is not None
        self.life.off(ME)
        self.spec.off = True

    @rule()
    def on(self) -> None:
        assert self.life is not None
        self.life.on(ME)
        self.spec.off = False

    @rule(text=st.sampled_from(("", "the incident of Friday", "{")))
    def off_by_file(self, text: str) -> None:
        assert self.life is not None
        (self.folder / "state" / "off.json").write_text(text)
        self.life.follow_switch()
        self.spec.off = True

    @precondition(lambda self: self.spec.off)
    @rule()
    def on_by_file(self) -> None:
        assert self.life is not None
        (self.folder / "state" / "off.json").unlink()
        self.life.follow_switch()
        self.spec.off = False

    @rule()
    def restart(self) -> None:
        self._end()
        self._start()

    @rule()
    def restart_with_the_source_gone(self) -> None:
        """Comes back steering under the last good set; then the source is there again, as it was."""
        self._end()
        aside = self.folder / "aside"
        self.policies.rename(aside)
        self._start()
        self.check()
        self._end()
        aside.rename(self.policies)
        self._start()

    # -- after each step

    @invariant()
    def check(self) -> None:
        if self.life is None or self.target is None:
            return
        spec = self.spec
        loaded = spec.loaded.revision if spec.loaded else "none"
        assert self.target.runs() == spec.runs()
        status = status_data(self.life, Follower(self.life, events=False))
        assert status["revision"] == spec.runs()
        assert status["loaded"] == loaded
        assert (status["off"] is not None, status["held"]) == (spec.off, spec.held)
        assert status["success"] == (not spec.failed)
        assert status["reloads"] == {"ok": spec.ok, "refused": spec.refused}
        read = {family.name: samples for family, samples in lifecycle_reader(self.life)()}
        gauges = {name: samples[0][1] for name, samples in read.items() if samples}
        assert gauges["scope_policy_reload_success"] == (not spec.failed)
        assert gauges["scope_steering_off"] == spec.off
        assert gauges["scope_policy_held"] == spec.held
        assert dict(read["scope_policy_reloads_total"]) == {
            ("ok",): spec.ok,
            ("refused",): spec.refused,
        }
