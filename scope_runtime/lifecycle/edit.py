"""One policy file of a followed directory, changed by an operator: shown first, then written whole and reloaded."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import Location, PolicyError, ScopeError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.lifecycle.build import dry_run
from scope_runtime.lifecycle.hosted import Hosted
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.types import Cause, Outcome, StaleRevision
from scope_runtime.policy.load import load_policy, parse_policy
from scope_runtime.policy.model import Policy
from scope_runtime.policy.yaml12 import MAX_FILE_BYTES
from scope_runtime.select import ProgramSource

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.ya?ml")
_CONTEXT_LINES = 3


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one file that is sound, and what it would do.

    Attributes:
        path: the file; ``before`` is its content now, None where it is not there.
        text: what it would say.
        programs: all policies as they would be then.
    """

    path: Path
    before: bytes | None
    text: str
    programs: ProgramSource

    @property
    def digest(self) -> str | None:
        """Of the content now."""
        return None if self.before is None else _digest(self.before)

    def lines(self) -> list[str]:
        """A unified diff of the file's text."""
        before = (self.before or b"").decode("utf-8", "replace").splitlines()
        name = self.path.name
        found = difflib.unified_diff(
            before,
            self.text.splitlines(),
            "nothing" if self.before is None else name,
            name,
            lineterm="",
            n=_CONTEXT_LINES,
        )
        return list(found)


def folder_of(hosted: Hosted) -> Path:
    """The directory that policies are followed in, and that what they name starts from.

    Raises:
        UsageError: they come from elsewhere: as bundles, or as one file.
    """
    lifecycle = hosted.lifecycle
    if lifecycle.feed is not None:
        where = lifecycle.feed.status().where
        raise UsageError(
            "policies come as bundles", found=where, hint="Change them where bundles are made"
        )
    if not lifecycle.source.path.is_dir():
        raise UsageError(
            "one policy file is followed, not a directory",
            found=str(lifecycle.source.path),
            hint="Serve its directory to save policies here",
        )
    return lifecycle.source.path


def parse_beside(source: Source, folder: Path, name: str, text: str) -> Policy:
    """A policy as if the file ``name`` of the folder said so. Raises PolicyErrors."""
    return parse_policy(text, file=str(folder / name), root=source.root)


def prepare(hosted: Hosted, name: str, text: str) -> Edit:
    """Checks, compiles and tries all policies as they would be with this file; nothing is written.

    Raises:
        UsageError: not a file that may be written here.
        ScopeError: a reload would refuse it.
    """
    lifecycle = hosted.lifecycle
    folder = folder_of(hosted)
    path = folder / _checked(name)
    if len(text.encode()) > MAX_FILE_BYTES:
        raise UsageError("the policy is too large", expected=f"{MAX_FILE_BYTES} bytes at most")
    before = _content(path)
    source = lifecycle.source
    changed = parse_beside(source, folder, name, text)
    others = [load_policy(p, root=source.root) for p in source.policy_paths() if p != path]
    bench = hosted.bench
    programs = ProgramSource(
        [*others, changed], bench.shape, control_vector_layers=bench.control_vector_layers
    )
    lifecycle.check(programs.policies)
    dry_run(programs, bench)
    return Edit(path, before, text, programs)


def save(hosted: Hosted, edit: Edit, expected: str | None, cause: Cause) -> Outcome:
    """Writes the file whole, reloads, and puts both on record; a refused reload leaves the file as it was.

    Args:
        expected: digest of the content that the change was shown against; None: there was no such file.

    Raises:
        StaleRevision: it is another by now.
        ScopeError: why nothing has changed.
    """

    def write() -> Callable[[], None]:
        now = _content(edit.path)
        found = None if now is None else _digest(now)
        if found != expected:
            raise StaleRevision(
                "the file is another by now",
                location=Location(str(edit.path)),
                found=found or "nothing",
                expected=expected or "nothing",
                hint="Look at the difference again",
            )
        _write(edit.path, edit.text.encode())
        return lambda: _restore(edit.path, now)

    outcome = hosted.lifecycle.change(write, cause)
    hosted.lifecycle.record(
        "saved",
        cause,
        file=str(edit.path),
        digest=_digest(edit.text.encode()),
        previous_digest=expected,
        revision=outcome.revision,
    )
    return outcome


def _checked(name: str) -> str:
    if not _FILE.fullmatch(name) or name.endswith((".test.yaml", ".test.yml")):
        raise UsageError(
            "not a name for a policy file",
            found=repr(name[:200]),
            expected="letters, digits, -, _ and ., then .yaml",
        )
    return name


def _content(path: Path) -> bytes | None:
    """Raises UsageError for what is no plain file: a link is somebody else's to change (``..data`` of a mount)."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(
            "only plain files are written",
            location=Location(str(path)),
            found="a link" if path.is_symlink() else "no file",
            hint="Change it where it comes from",
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as reason:
        found = reason.strerror or str(reason)
        raise UsageError("cannot be read", location=Location(str(path)), found=found) from None


def _write(path: Path, data: bytes) -> None:
    with written_whole(path, PolicyError) as temporary:
        temporary.write_bytes(data)


def _restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
        return
    try:
        _write(path, before)
    except ScopeError as error:
        error.hint = "The reload was refused and the file could not be put back: look at it"
        raise


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
