"""What ``scope check`` can say: of one policy file, of the policies of a directory together, of a configuration."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scope_runtime.cases.load import is_test, load_test
from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError, UsageError
from scope_runtime.merge import check_set, merged
from scope_runtime.policy.lint import LintWarning, lint
from scope_runtime.policy.load import load_policy, policy_files
from scope_runtime.policy.model import Policy
from scope_runtime.policy.revision import policy_revision
from scope_runtime.policy.yaml12 import decode, parse
from scope_runtime.types import ModelShape

if TYPE_CHECKING:
    from scope_runtime.lifecycle.config import RuntimeConfig

CONFIG_NAME = "scope.yaml"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one file came to; ``revision`` is None when the policy is invalid."""

    file: str
    name: str | None
    revision: str | None
    errors: tuple[ScopeError, ...]
    warnings: tuple[LintWarning, ...]
    policy: Policy | None = None


def check_paths(paths: Sequence[Path], root: Path | None, *, files: bool) -> list[Verdict]:
    """Everything that can be said about policy files, directories of them, and configurations; each file once.

    Raises:
        UsageError: there is nothing to check.
    """
    found: dict[str, Verdict] = {}
    for path in paths:
        for verdict in _check_path(path, root, files=files):
            known = found.get(verdict.file)
            # Alone and with its neighbours: what either look found is said.
            if known is None or len(verdict.errors) > len(known.errors):
                found[verdict.file] = verdict
    return list(found.values())


def _check_path(path: Path, root: Path | None, *, files: bool) -> list[Verdict]:
    if path.is_dir():
        inside = policy_files(path)
        if not inside:
            raise UsageError("no policy in the directory", found=str(path), expected="*.yaml")
        configs = [file for file in inside if is_config(file)]
        policies = [file for file in inside if file not in configs]
        return [
            *(check_together(policies, root, files=files) if policies else ()),
            *(verdict for config in configs for verdict in check_config(config, files=files)),
        ]
    if not path.exists():
        raise UsageError("no such file or directory", found=str(path))
    if is_config(path):
        return check_config(path, files=files)
    return [check_file(path, root, files=files)]


def check_file(path: Path, root: Path | None = None, *, files: bool = True) -> Verdict:
    """Everything that can be said about one policy file without a model."""
    name = revision = policy = None
    errors: tuple[ScopeError, ...] = ()
    found: tuple[LintWarning, ...] = ()
    try:
        if is_test(path):
            return Verdict(
                str(path), f"tests {load_test(path, root=root).policy.name}", None, (), ()
            )
        policy = load_policy(path, root=root, files=files)
        name = policy.name
        found = lint(policy, datetime.datetime.now(datetime.timezone.utc).date())
        if files:
            # numpy and the pack reader: only now, so that a policy that is wrong is refused at once.
            from scope_runtime.compile import check_against_packs

            notes = check_against_packs(policy).notes
            whole = Location(policy.file)
            found += tuple(LintWarning("approximation", note, whole) for note in notes)
            revision = policy_revision(policy)
    except PolicyErrors as several:
        errors = several.errors
    except ScopeError as error:
        errors = (error,)
    return Verdict(str(path), name, revision, errors, found, policy)


def check_together(
    paths: Iterable[Path],
    root: Path | None = None,
    *,
    files: bool = True,
    shape: ModelShape | None = None,
) -> list[Verdict]:
    """Each policy by itself; then those that are sound against each other, as they would be in force together.

    Args:
        shape: the model that they are for; by default the one that their packs were made for.
    """
    verdicts = [check_file(path, root, files=files) for path in paths]
    sound = [v.policy for v in verdicts if v.policy is not None and not v.errors]
    errors = _errors_of_set(sound, files=files, shape=shape)
    for place, verdict in enumerate(verdicts):
        own = tuple(e for e in errors if e.location and e.location.file == verdict.file)
        if own:
            errors = tuple(e for e in errors if e not in own)
            verdicts[place] = replace(verdict, revision=None, errors=verdict.errors + own)
    if errors:
        file = str(errors[0].location.file if errors[0].location else verdicts[0].file)
        verdicts.append(Verdict(file, None, None, errors, ()))
    return verdicts


def _errors_of_set(
    policies: Sequence[Policy], *, files: bool, shape: ModelShape | None
) -> tuple[ScopeError, ...]:
    try:
        check_set(policies)
        if files and policies and (shape is not None or len(policies) > 1):
            from scope_runtime.compile import assumed_shape
            from scope_runtime.resolve import load_artefacts
            from scope_runtime.select import ProgramSource

            whole = merged(policies)
            ProgramSource(policies, shape or assumed_shape(whole, load_artefacts(whole)))
    except PolicyErrors as several:
        return several.errors
    except ScopeError as error:
        return (error,)
    return ()


def is_config(path: Path) -> bool:
    """Whether a file says that it is a runtime's configuration; one that cannot be read is told by its name."""
    try:
        data = path.read_bytes()
        if b"Runtime" not in data:
            return False
        tree = parse(decode(data, str(path)), str(path)).tree
    except (OSError, PolicyErrors):
        return path.name == CONFIG_NAME
    return isinstance(tree, dict) and tree.get("kind") == "Runtime"


def check_config(path: Path, *, files: bool = True) -> list[Verdict]:
    """A runtime's configuration, then the policies that it names; on its model, if that is there."""
    from scope_runtime.lifecycle.config import load_config

    try:
        config = load_config(path)
    except PolicyErrors as several:
        return [Verdict(str(path), None, None, several.errors, ())]
    errors: list[ScopeError] = []
    warnings: list[LintWarning] = []
    shape = _shape(config, errors, warnings) if files else None
    members = _members(config, errors)
    if files:
        _check_keys(config, errors)
    own = Verdict(str(path), "a runtime's configuration", None, tuple(errors), tuple(warnings))
    return [own, *check_together(members, config.policy_root, files=files, shape=shape)]


def _shape(
    config: RuntimeConfig, errors: list[ScopeError], warnings: list[LintWarning]
) -> ModelShape | None:
    if not config.model.exists():
        said = f"no model at {config.model}: the policies are checked on that of their packs"
        warnings.append(LintWarning("no-model", said, config.where("spec.model.path")))
        return None
    from scope_runtime.llama.checks import check_model

    try:
        info = check_model(config.model)
    except ScopeError as error:
        errors.append(error)
        return None
    from scope_runtime.llama.room import beyond_training

    if note := beyond_training(info, config.n_ctx):
        warnings.append(LintWarning("context", note, config.where("spec.model.ctx")))
    return ModelShape(info.architecture, info.n_layer, info.n_embd)


def _members(config: RuntimeConfig, errors: list[ScopeError]) -> tuple[Path, ...]:
    """The policy files that are named, or what is wrong with that."""
    from scope_runtime.lifecycle.types import BundleOptions

    path = config.policy
    if isinstance(path, BundleOptions):
        return ()  # they are elsewhere, and were checked before they were packed
    members = policy_files(path) if path.is_dir() else (path,) if path.exists() else ()
    if not members:
        errors.append(
            PolicyError(
                "no policy in the directory" if path.is_dir() else "the policies are not there",
                location=config.where("spec.policy.path"),
                key="spec.policy.path",
                found=str(path),
            )
        )
    return members


def _check_keys(config: RuntimeConfig, errors: list[ScopeError]) -> None:
    from scope_runtime.bundle.keys import read_public_key
    from scope_runtime.lifecycle.types import BundleOptions

    if not isinstance(config.policy, BundleOptions):
        return
    for key in config.policy.keys:
        try:
            read_public_key(key)
        except ScopeError as error:
            errors.append(error)
