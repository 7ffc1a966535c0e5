"""Where policies come from, and what lies there now: digests of the policies and of every file they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scope_runtime.errors import PolicyErrors
from scope_runtime.policy.files import named_files
from scope_runtime.policy.load import load_policy, policy_files
from scope_runtime.policy.model import Policy
from scope_runtime.policy.revision import FileDigests

ABSENT = "absent"

Contents = Mapping[str, str]
"""Path to ``sha256:…``, or to ``absent``."""


@dataclass(frozen=True, slots=True)
class Source:
    """A policy file, or a directory of policies that are in force together.

    Attributes:
        root: directory that the files which policies name must lie in; by default each policy's own.
    """

    path: Path
    root: Path | None = None

    def policy_paths(self) -> tuple[Path, ...]:
        """The policy files that are there now."""
        if not self.path.is_dir():
            return (self.path,)
        try:
            return policy_files(self.path)
        except OSError:
            return ()

    def folders(self, named: Iterable[str]) -> tuple[Path, ...]:
        """The directories in which a change may concern us: never files, which editors and mounts replace."""
        own = self.path if self.path.is_dir() else self.path.parent
        return tuple(dict.fromkeys([own, own.parent, *(Path(name).parent for name in named)]))


def contents(source: Source, named: Iterable[str], digests: FileDigests) -> dict[str, str]:
    """What is there now: every policy and every file of ``named``. Never raises."""
    paths = [str(path) for path in source.policy_paths()]
    return {name: _digest(name, digests) for name in sorted({*paths, *named})}


def _digest(name: str, digests: FileDigests) -> str:
    try:
        return digests.digest(name)
    except (OSError, ValueError):
        return ABSENT


def named_by(policies: Iterable[Policy]) -> tuple[str, ...]:
    """Paths of the packs and vectors that these policies name; sorted, each once."""
    return tuple(
        sorted(
            {str(Path(policy.root, name)) for policy in policies for name in named_files(policy)}
        )
    )


def named_at(source: Source) -> tuple[str, ...]:
    """As ``named_by``, for a source that may be wrong in parts: what can be read of it, is."""
    policies = []
    for path in source.policy_paths():
        try:
            policies.append(load_policy(path, root=source.root, files=False))
        except PolicyErrors:
            continue
    return named_by(policies)
