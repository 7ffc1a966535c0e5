"""A policy file → a frozen Policy, or every error in it at once.

    bytes → text → tree with marks → schema → parts → names and numbers → files → Policy

Each step goes on with what the one before could make sense of, so that one run shows all that is
to be mended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.policy.build import (
    Parts,
    build_contents,
    build_dose,
    build_model,
    build_parts,
    build_selector,
)
from scope_runtime.policy.checks import semantic_errors
from scope_runtime.policy.files import file_errors, path_errors
from scope_runtime.policy.model import Apply, Mode, Policy
from scope_runtime.policy.schema import schema_findings
from scope_runtime.policy.yaml12 import MAX_FILE_BYTES, Document, decode, parse

POLICY_SUFFIXES = (".yaml", ".yml")
TEST_SUFFIXES = (".test.yaml", ".test.yml")


def load_policy(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, files: bool = True
) -> Policy:
    """Reads and checks one policy file.

    Args:
        path: the file.
        root: the directory that every path in the policy must stay inside; the file's own
            directory unless given. Paths in a policy are always relative to the policy file.
        files: whether the packs and vectors that the policy names must be there.

    Raises:
        PolicyErrors: everything that is wrong with it, in file order.
    """
    file = os.fspath(path)
    try:
        with Path(file).open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, error) from None
    return parse_policy(decode(data, file), file=file, root=root, files=files)


def _unreadable(file: str, error: OSError) -> PolicyErrors:
    reason = error.strerror or str(error)
    return PolicyErrors(
        (PolicyError("the policy cannot be read", location=Location(file), found=reason),)
    )


def parse_policy(
    text: str, *, file: str, root: str | os.PathLike[str] | None = None, files: bool = True
) -> Policy:
    """As load_policy, for text that was read already; paths in it start beside ``file``."""
    own_directory = str(Path(file).parent)
    base = os.fspath(root) if root is not None else own_directory
    document = parse(text, file)
    findings = schema_findings(document)
    early = {path for path, _ in document.errors}
    errors = [error for _, error in document.errors]
    errors += [finding.error for finding in findings if finding.path not in early]
    bad = early | {finding.path for finding in findings}

    parts = build_parts(document, bad, _inside(own_directory, base))
    written = _written_paths(document, parts)
    errors += semantic_errors(document, parts)
    astray = list(path_errors(parts.features, written))
    errors += astray
    if files and not astray:
        errors += file_errors(parts.features, base, written)
    if errors:
        raise PolicyErrors(tuple(sorted(errors, key=_place)))
    return _policy(document, parts, file, base)


def policy_files(directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The policy files of a directory: its ``*.yaml`` and ``*.yml``, sorted; not those below it.

    Tests of policies (``*.test.yaml``) and hidden files are left out, and so are directories,
    Kubernetes' own ``..data`` among them.
    """
    return tuple(
        sorted(
            path
            for path in Path(directory).iterdir()
            if path.suffix in POLICY_SUFFIXES
            and not path.name.endswith(TEST_SUFFIXES)
            and not path.name.startswith(".")
            and path.is_file()
        )
    )


def load_policies(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, files: bool = True
) -> tuple[Policy, ...]:
    """Reads one policy file, or every policy of a directory.

    Raises:
        PolicyErrors: everything that is wrong with any of them, file by file; or there is none.
    """
    source = Path(path)
    if not source.is_dir():
        return (load_policy(source, root=root, files=files),)
    try:
        found = policy_files(source)
    except OSError as error:
        raise _unreadable(str(source), error) from None
    if not found:
        # An emptied directory is not a wish for no policies: a mount that went away looks the same.
        none = PolicyError(
            "no policy in the directory",
            location=Location(str(source)),
            expected="*.yaml",
            hint="A policy with mode: off does nothing.",
        )
        raise PolicyErrors((none,))
    policies: list[Policy] = []
    errors: list[ScopeError] = []
    for file in found:
        try:
            policies.append(load_policy(file, root=root, files=files))
        except PolicyErrors as several:
            errors += several.errors
    if errors:
        raise PolicyErrors(tuple(errors))
    return tuple(policies)


def _inside(own_directory: str, root: str) -> str:
    """The policy's directory relative to the root, with forward slashes; "" if the same."""
    relative = os.path.relpath(own_directory, root)
    return "" if relative == "." else relative.replace(os.sep, "/")


def _written_paths(document: Document, parts: Parts) -> dict[str, tuple[Location, str]]:
    """Where each feature's path stands, and how it was written."""
    written = {}
    for name in parts.features:
        raw = document.tree["spec"]["features"][name]
        for key in ("pack", "vector"):
            if key in raw:
                written[name] = (document.marks[("spec", "features", name, key)].value, raw[key])
    return written


def _place(error: ScopeError) -> tuple[int, int]:
    where = error.location
    return (where.line, where.column) if where else (0, 0)


def _policy(document: Document, parts: Parts, file: str, root: str) -> Policy:
    metadata, spec = document.tree["metadata"], document.tree["spec"]

    def place(*path: str) -> Location | None:
        mark = document.marks.get(("spec", *path))
        return mark.value if mark else None

    generation = metadata.get("generation")
    return Policy(
        name=metadata["name"],
        owner=metadata.get("owner"),
        generation=None if generation is None else int(generation),
        description=metadata.get("description"),
        model=build_model(spec.get("model"), place("model")),
        mode=Mode(spec.get("mode", "enforce")),
        apply=Apply(spec.get("apply", "next-token")),
        selector=build_selector(spec.get("selector")),
        features=tuple(parts.features.values()),
        dose_limit=build_dose(spec.get("limits", {}).get("dose"), place("limits", "dose")),
        rules=tuple(rule for _, rule in parts.rules),
        exceptions=tuple(exemption for _, exemption in parts.exceptions),
        file=file,
        root=root,
        canonical=canonical_json(document.tree),
        contents=build_contents(spec.get("audit")),
        name_at=document.marks["metadata", "name"].value,
        generation_at=None
        if generation is None
        else document.marks["metadata", "generation"].value,
    )


def canonical_json(tree: Mapping[str, Any]) -> str:
    """Sorted keys, no spaces, and one way to write a number: what the revision is computed from."""
    return json.dumps(
        _plain(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 1 and 1.0 mean the same
    return value
