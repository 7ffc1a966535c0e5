"""The files a policy names: inside its root, there, and regular. Nothing is opened here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from scope_runtime.errors import Location, PolicyError, PolicyErrors
from scope_runtime.policy.model import Feature, GroupFeature, PackFeature, Policy


def named_files(policy: Policy) -> tuple[str, ...]:
    """The packs and vectors that the policy names, relative to its root; sorted, each once."""
    names = (named_file(feature) for feature in policy.features)
    return tuple(sorted({name for name in names if name is not None}))


def named_file(feature: Feature) -> str | None:
    """The file that one feature names."""
    if isinstance(feature, GroupFeature):
        return None
    return feature.pack if isinstance(feature, PackFeature) else feature.vector


def file_path(policy: Policy, name: str) -> Path:
    """Where a file that the policy names lies: the one way from a policy to a path to open.

    Raises:
        PolicyError: it is not there, is not a regular file, or lies outside the policy's root.
    """
    trouble = _trouble(policy.root, name)
    if trouble:
        raise PolicyError(
            trouble[0], location=Location(policy.file), found=trouble[1], expected=trouble[2]
        )
    return Path(policy.root, name)


def check_files(policy: Policy) -> None:
    """Holds every file that the policy names against the disk.

    Raises:
        PolicyErrors: one is missing, is not a regular file, or lies outside the policy's root.
    """
    errors = tuple(file_errors({f.name: f for f in policy.features}, policy.root, {}))
    if errors:
        raise PolicyErrors(errors)


def path_errors(
    features: Mapping[str, Feature], written: Mapping[str, tuple[Location, str]]
) -> Iterator[PolicyError]:
    """What can be said of the paths without looking at the disk."""
    for feature in features.values():
        name = named_file(feature)
        if name is None:
            continue
        where, text = written[feature.name]
        if name.startswith("/") or "\\" in text or ":" in text.split("/")[0]:
            expected = "a relative path with forward slashes, inside the policy's directory"
            yield _error("not a relative path", where, feature, text, expected)
        elif name == ".." or name.startswith("../"):
            yield _error(
                "the path leads out of the policy's root", where, feature, text, "a path inside it"
            )
        elif any(not character.isprintable() for character in text):
            yield _error(
                "a path with an unprintable character", where, feature, ascii(text), "a plain path"
            )


def file_errors(
    features: Mapping[str, Feature], root: str, written: Mapping[str, tuple[Location, str]]
) -> Iterator[PolicyError]:
    """What the disk says about the paths; a file is reported once, where it is first named."""
    reported: set[str] = set()
    for feature in features.values():
        name = named_file(feature)
        if name is None or name in reported:
            continue
        trouble = _trouble(root, name)
        if trouble:
            reported.add(name)
            where, _ = written.get(feature.name, (feature.location, name))
            yield _error(trouble[0], where, feature, trouble[1], trouble[2])


def _error(
    message: str, where: Location, feature: Feature, found: str, expected: str
) -> PolicyError:
    key = "pack" if isinstance(feature, PackFeature) else "vector"
    return PolicyError(
        message,
        location=where,
        key=f"spec.features.{feature.name}.{key}",
        found=found,
        expected=expected,
    )


def _trouble(root: str, name: str) -> tuple[str, str, str] | None:
    """What is wrong with the file: message, found, expected."""
    path = Path(root, name)
    try:
        if not path.resolve().is_relative_to(Path(root).resolve()):
            return (
                "the path leads out of the policy's root",
                f"{name}, a link to outside",
                "a file inside it",
            )
        status = path.stat()
    except FileNotFoundError:
        return "no such file", f"nothing at {path}", "a file"
    except (OSError, RuntimeError, ValueError) as error:
        # Before Python 3.13 a loop of links is a RuntimeError with words of its own.
        loop = isinstance(error, RuntimeError)
        reason = (
            os.strerror(errno.ELOOP) if loop else getattr(error, "strerror", None) or str(error)
        )
        return "the file cannot be read", f"{name}: {reason}", "a readable file"
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither file nor directory"
        return "not a regular file", f"{name}, {kind}", "a file"
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        return "the file cannot be read", f"{name}: Permission denied", "a readable file"
    return None
