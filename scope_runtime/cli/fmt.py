"""``scope fmt``: policies in their one layout."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.policy.format import formatted
from scope_runtime.policy.load import POLICY_SUFFIXES, parse_policy
from scope_runtime.policy.revision import policy_revision
from scope_runtime.policy.yaml12 import MAX_FILE_BYTES, decode

WOULD_CHANGE = 1


def fmt(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILES]",
            help="Policies and their tests, or directories of them.  [default: .]",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; print what would change, and exit 1.")
    ] = False,
) -> None:
    """Lay out policies the same way everywhere; comments stay, and so does what the policy means.

    The revision is the same before and after. A file that is no YAML is an error and is left alone.
    Exit code 0: all is as it should be, or was made so; 1: a file is wrong, or --check found
    something to change; 2: wrong usage.

    \b
    Examples:
      scope fmt policies/
      scope fmt --check policies/*.yaml
    """
    failed = changed = False
    for path in _files(paths or [Path()]):
        try:
            before, after = _both(path)
        except ScopeError as error:
            failed = True
            for line in str(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            continue
        if after == before:
            continue
        changed = True
        if check:
            typer.echo(_diff(path, before, after), nl=False)
        else:
            _write(path, after)
            typer.echo(f"{path}: laid out")
    if failed or (check and changed):
        raise typer.Exit(WOULD_CHANGE)


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                child
                for child in path.iterdir()
                if child.suffix in POLICY_SUFFIXES
                and not child.name.startswith(".")
                and child.is_file()
            )
            if not inside:
                raise UsageError("no policy in the directory", found=str(path), expected="*.yaml")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError("no such file or directory", found=str(path))
    return list(dict.fromkeys(found))


def _both(path: Path) -> tuple[str, str]:
    """The file's text as it stands, and laid out; the two mean the same."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as reason:
        found = reason.strerror or str(reason)
        raise PolicyError("cannot be read", location=Location(str(path)), found=found) from None
    before = decode(data, str(path))
    after = formatted(before, str(path))
    if _revision(before, path) != _revision(after, path):
        raise PolicyError(
            "the layout would change the policy's revision",
            location=Location(str(path)),
            hint="The file is left as it is; please report this",
        )
    return before, after


def _revision(text: str, path: Path) -> str | None:
    """The policy's revision; None where the file is no sound policy with all its files."""
    try:
        return policy_revision(parse_policy(text, file=str(path)))
    except PolicyErrors:
        return None


def _write(path: Path, text: str) -> None:
    """Temporary file, fsync, rename; the file's mode stays, and a link stays a link."""
    target = path.resolve()
    with written_whole(target, PolicyError) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.chmod(target.stat().st_mode & 0o7777)


def _diff(path: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        str(path),
        f"{path} (laid out)",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
