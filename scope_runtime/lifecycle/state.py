"""What outlives the process: the policy sets that were in force, whole, and which of them is; the off switch.

    STATE/lock                         held by the one process that uses the directory
    STATE/active.json                  which set is in force, and whether it was chosen over what lies at the source
    STATE/off.json                     there while steering is switched off; a person may make or remove it by hand
    STATE/sets/<revision>/set.json     what the set is, with the digest of every file
    STATE/sets/<revision>/files/…      the policies and every file that they name
    STATE/sets/<revision>/set.bundle   the bundle that they came in, if they came in one

Files are on the disk before their names are, and every digest is checked again before anything is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scope_runtime.errors import Location, ScopeError
from scope_runtime.files import open_regular, read_exactly, sha256_of, written_whole
from scope_runtime.lifecycle.history import History
from scope_runtime.lifecycle.source import ABSENT, Source
from scope_runtime.select import ProgramSource

VERSION = 1
_MAX_JSON_BYTES = 1 << 22
_ARCHIVE = "set.bundle"
_SET = {
    "revision": str,
    "time": int | float,
    "number": int,
    "source": str,
    "policies": list,
    "generations": dict,
    "files": dict,
}


class StateError(ScopeError):
    """The state directory cannot be written, or what was kept there is no longer what it was."""


@dataclass(frozen=True, slots=True)
class Active:
    """Which set is in force.

    Attributes:
        revision: its revision.
        held_against: what lay at the source when another set was chosen over it, by path; none while the source rules.
        generations: the highest generation of each policy so far; a file with a lower one is refused.
        history: which sets were in force before it; see ``history``.
    """

    revision: str
    held_against: Mapping[str, str] | None = None
    generations: Mapping[str, int] = field(default_factory=dict)
    history: History = ()


@dataclass(frozen=True, slots=True)
class Switch:
    """Who switched steering off, when, and why."""

    actor: str
    reason: str | None
    time: float


@dataclass(frozen=True, slots=True)
class Kept:
    """A set that can be rolled back to; ``time`` is when it came into force first."""

    revision: str
    time: float
    policies: tuple[str, ...]
    generations: Mapping[str, int]


class State:
    """The state directory.

    Args:
        folder: made if missing, mode 0700.
        keep: how many sets to keep; the one in force is always kept.

    Raises:
        StateError: the directory cannot be made.
    """

    def __init__(self, folder: Path, *, keep: int = 10) -> None:
        self.folder = folder
        self.keep = keep
        self._sound: set[str] = set()
        self.make()

    def make(self) -> None:
        """Makes the directory, if it is missing. Raises StateError."""
        try:
            (self.folder / "sets").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as reason:
            raise _error("the state directory cannot be made", self.folder, reason) from None

    # -- which set

    @property
    def active(self) -> Active | None:
        """What was in force last; None at the first start. Raises StateError."""
        path = self.folder / "active.json"
        data = self._read_json(path)
        if data is None:
            return None
        active = Active(
            data.get("revision", ""),
            data.get("held_against"),
            data.get("generations") or {},
            tuple(data.get("history") or ()),
        )
        if not (
            isinstance(active.revision, str)
            and active.revision
            and isinstance(active.held_against, dict | None)
            and _are_numbers(active.generations)
            and all(isinstance(revision, str) for revision in active.history)
        ):
            raise _damaged(path)
        return active

    def says(self, active: Active) -> bool:
        """Whether it is what is on the disk; not where that is damaged."""
        with contextlib.suppress(StateError):
            return self.active == active
        return False

    def set_active(self, active: Active) -> None:
        self._write_json(self.folder / "active.json", {"version": VERSION, **asdict(active)})

    # -- the switch

    @property
    def switch_path(self) -> Path:
        """The file whose presence means off."""
        return self.folder / "off.json"

    def switch(self) -> Switch | None:
        """Whether steering is switched off. A file that somebody made by hand counts, whatever is in it."""
        path = self.switch_path
        try:
            made = path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as reason:
            # It is there, or might be: a switch that cannot be read must not keep steering on.
            return Switch("file", f"{path}: {reason.strerror}", time.time())
        try:
            with open_regular(path, StateError) as file:
                data = read_exactly(file, 0, min(os.fstat(file.fileno()).st_size, _MAX_JSON_BYTES))
        except (StateError, OSError) as reason:
            return Switch("file", str(reason), made)
        text = data.decode("utf-8", "replace")
        try:
            said = json.loads(text)
            why = said.get("reason")
            return Switch(
                str(said["actor"]), None if why is None else str(why), float(said["time"])
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return Switch("file", text.strip()[:500] or None, made)

    def set_switch(self, switch: Switch | None) -> None:
        """Makes or removes the switch file. Raises StateError."""
        if switch is None:
            try:
                self.switch_path.unlink(missing_ok=True)
            except OSError as reason:
                raise _error("cannot be removed", self.switch_path, reason) from None
            return
        self._write_json(self.switch_path, asdict(switch))

    # -- kept sets

    def keep_set(
        self,
        source: Source,
        programs: ProgramSource,
        seen: Mapping[str, str],
        archive: Path | None = None,
        history: History = (),
    ) -> None:
        """Copies a set with every file that it was made from.

        Args:
            seen: digests of the files, as they were when it was compiled.
            archive: the bundle that it came in; whoever uses the set again checks it against that.
            history: sets to keep rather than others, when there are too many.

        Raises:
            StateError: a file is no longer what was compiled, or cannot be copied.
        """
        target = self._folder_of(programs.revision)
        if self._is_sound(programs.revision):
            return
        root = Path(programs.policies[0].root)
        staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.rmtree(staging, ignore_errors=True)
        files = {}
        try:
            for name, digest in seen.items():
                if digest == ABSENT:
                    continue
                place = os.path.relpath(name, root).replace(os.sep, "/")
                if place.startswith("../"):
                    raise StateError(
                        "a policy outside its root cannot be kept", location=Location(name)
                    )
                _copy(Path(name), staging / "files" / place, digest)
                files[place] = digest
            if archive is not None:
                with open_regular(archive, StateError) as file:
                    digest = f"sha256:{sha256_of(file)}"
                _copy(archive, staging / _ARCHIVE, digest)
            own = os.path.relpath(source.path, root).replace(os.sep, "/")
            about = {
                "version": VERSION,
                "revision": programs.revision,
                "time": time.time(),
                "number": 1 + max((n for n, _ in self._numbered()), default=0),
                "source": own,
                "policies": [policy.name for policy in programs.policies],
                "generations": generations_of(programs),
                "files": files,
            }
            self._write_json(staging / "set.json", about)
            _fsync_tree(staging)
            shutil.rmtree(target, ignore_errors=True)  # half a set, of a process that was killed
            staging.rename(target)
            _fsync(target.parent)
            self._sound.add(programs.revision)
        except OSError as reason:
            raise _error("the policies cannot be kept", target, reason) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._forget_old({programs.revision, *history})

    def source_of(self, revision: str) -> Source:
        """A kept set as a source, after every one of its files was checked.

        Raises:
            StateError: there is no such set, or a file is not what was kept.
        """
        folder = self._folder_of(revision)
        about = self._about(folder)
        if about is None:
            known = ", ".join(kept.revision for kept in self.kept()) or "none"
            raise StateError(
                "no such revision is kept",
                location=Location(str(self.folder)),
                found=revision,
                expected=f"one of {known}",
            )
        files = folder / "files"
        there = {p.relative_to(files).as_posix() for p in files.rglob("*") if not p.is_dir()}
        for name, digest in about["files"].items():
            path = files / name
            with open_regular(path, StateError) as file:
                found = f"sha256:{sha256_of(file)}"
            if found != digest:
                raise StateError(
                    "a kept file was altered",
                    location=Location(str(path)),
                    found=found,
                    expected=digest,
                )
        if strange := sorted(there - set(about["files"])):
            raise StateError("a file that was not kept", location=Location(str(files / strange[0])))
        return Source(files / about["source"], files)

    def archive_of(self, revision: str) -> Path:
        """The bundle that a kept set came in; it need not be there."""
        return self._folder_of(revision) / _ARCHIVE

    def kept(self) -> tuple[Kept, ...]:
        """The kept sets, the latest first."""
        return tuple(
            Kept(
                about["revision"],
                about["time"],
                tuple(about["policies"]),
                about["generations"],
            )
            for _, about in sorted(self._numbered(), key=lambda pair: -pair[0])
        )

    def _numbered(self) -> list[tuple[int, dict[str, Any]]]:
        found = []
        for path in (self.folder / "sets").glob("*/set.json"):
            with contextlib.suppress(StateError):  # one that is damaged is no choice
                about = self._about(path.parent)
                if about is not None:
                    found.append((about["number"], about))
        return found

    def _about(self, folder: Path) -> dict[str, Any] | None:
        """What a kept set says of itself, as far as its form goes; None: there is none. Raises StateError."""
        path = folder / "set.json"
        about = self._read_json(path)
        if about is None:
            return None
        if not all(isinstance(about.get(key), kind) for key, kind in _SET.items()):
            raise _damaged(path)
        if not _are_numbers(about["generations"]):
            raise _damaged(path)
        return about

    def _is_sound(self, revision: str) -> bool:
        """Whether a set is kept already; the first time in a process, every digest of it is looked at."""
        try:
            if revision in self._sound:
                return self._about(self._folder_of(revision)) is not None
            self.source_of(revision)
        except (StateError, OSError):
            return False
        self._sound.add(revision)
        return True

    def _forget_old(self, wanted: Container[str]) -> None:
        by_worth = sorted(self.kept(), key=lambda kept: kept.revision not in wanted)
        for kept in by_worth[self.keep :]:
            shutil.rmtree(self._folder_of(kept.revision), ignore_errors=True)

    def _folder_of(self, revision: str) -> Path:
        name = PurePosixPath(revision.removeprefix("sha256:")).name
        return self.folder / "sets" / (name or "none")

    # -- files

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        try:
            data = json.loads(path.read_bytes()[:_MAX_JSON_BYTES])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as reason:
            raise _error("the state cannot be read", path, reason) from None
        if not isinstance(data, dict) or data.get("version", VERSION) != VERSION:
            raise StateError("the state is of another version", location=Location(str(path)))
        return data

    def _write_json(self, path: Path, data: Mapping[str, Any]) -> None:
        with written_whole(path, StateError) as temporary:
            temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")


def generations_of(programs: ProgramSource) -> dict[str, int]:
    """The generation of each policy that says one."""
    return {p.name: p.generation for p in programs.policies if p.generation is not None}


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copies and fsyncs a file, if it still is what ``digest`` says."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sha = hashlib.sha256()
    with open_regular(source, StateError) as file, target.open("xb") as out:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if f"sha256:{sha.hexdigest()}" != digest:
        raise StateError(
            "the file changed while it was kept",
            location=Location(str(source)),
            found=f"sha256:{sha.hexdigest()}",
            expected=digest,
        )


def _fsync_tree(folder: Path) -> None:
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _fsync(inside)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _are_numbers(generations: object) -> bool:
    return isinstance(generations, dict) and all(
        isinstance(number, int) for number in generations.values()
    )


def _damaged(path: Path) -> StateError:
    return StateError("the state is damaged", location=Location(str(path)))


def _error(message: str, path: Path, reason: Exception) -> StateError:
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return StateError(message, location=Location(str(path)), found=text)
