"""``scope check``: is the policy right, and if not, where."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_runtime.cases.load import is_test, load_test
from scope_runtime.cli import findings
from scope_runtime.cli.findings import Finding
from scope_runtime.cli.options import RootOption
from scope_runtime.errors import Location, PolicyErrors, ScopeError, UsageError
from scope_runtime.policy.lint import LintWarning, lint
from scope_runtime.policy.load import load_policy, policy_files
from scope_runtime.policy.revision import policy_revision
from scope_runtime.types import StrEnum

INVALID = 1
LINT_ONLY = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one file came to; ``revision`` is None when the policy is invalid."""

    file: str
    name: str | None
    revision: str | None
    errors: tuple[ScopeError, ...]
    warnings: tuple[LintWarning, ...]


class Form(StrEnum):
    """How findings are written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def check(
    paths: Annotated[
        list[Path], typer.Argument(help="Policy files, or directories of them.", show_default=False)
    ],
    root: RootOption = None,
    files: Annotated[
        bool, typer.Option(help="Open the packs and vectors that the policies name, and compile.")
    ] = True,
    warnings: Annotated[
        bool, typer.Option(help="Also say what is allowed but seldom meant.")
    ] = True,
    form: Annotated[
        Form, typer.Option("--format", help="For people, scripts, code scanning, or GitHub.")
    ] = Form.TEXT,
    json_output: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Check policies: format, names, files, and that they compile for the model of their packs.

    Prints one line for each error and warning, with file, line and column. Exit code 0: all fine;
    1: something is invalid; 2: wrong usage; 3: warnings only.

    \b
    Examples:
      scope check policies/english-only.yaml
      scope check policies/ --no-warnings
      scope check --json policies/*.yaml | jq .policies[].revision
      scope check --format sarif policies/ > scope.sarif
    """
    verdicts = [check_file(path, root, files=files) for path in _policies(paths)]
    if json_output:
        form = Form.JSON
    if form is Form.JSON:
        typer.echo(json.dumps(_document(verdicts, warnings), ensure_ascii=False, indent=2))
    elif form is Form.SARIF:
        log = findings.sarif(_findings(verdicts, warnings))
        typer.echo(json.dumps(log, ensure_ascii=False, indent=2))
    else:
        _print(verdicts, warnings)
    if form is Form.GITHUB:
        for line in findings.github(_findings(verdicts, warnings)):
            typer.echo(line)
    if any(verdict.errors for verdict in verdicts):
        raise typer.Exit(INVALID)
    if warnings and any(verdict.warnings for verdict in verdicts):
        raise typer.Exit(LINT_ONLY)


def check_file(path: Path, root: Path | None = None, *, files: bool = True) -> Verdict:
    """Everything that can be said about one policy file without a model."""
    name = revision = None
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
    return Verdict(str(path), name, revision, errors, found)


def _policies(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = policy_files(path)
            if not inside:
                raise UsageError("no policy in the directory", found=str(path), expected="*.yaml")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError("no such file or directory", found=str(path))
    return list(dict.fromkeys(found))


def _findings(verdicts: list[Verdict], with_warnings: bool) -> list[Finding]:
    return [
        finding
        for verdict in verdicts
        for finding in (
            *(findings.of_error(error, verdict.file) for error in verdict.errors),
            *(map(findings.of_warning, verdict.warnings) if with_warnings else ()),
        )
    ]


def _print(verdicts: list[Verdict], with_warnings: bool) -> None:
    for verdict in verdicts:
        for error in verdict.errors:
            for line in str(error).splitlines():
                _line(line, error.location, "error", typer.colors.RED)
        if with_warnings:
            for warning in verdict.warnings:
                _line(str(warning), warning.location, "warning", typer.colors.YELLOW)
        if not verdict.errors:
            said = f"{verdict.file}: {verdict.name} {verdict.revision or ''}".rstrip()
            _line(said, Location(verdict.file), "ok", typer.colors.GREEN)


def _line(text: str, where: Location | None, word: str, colour: str) -> None:
    """``file:line:column: word: …`` in one unbroken line, which editors and problem matchers read."""
    place = f"{where}: " if where and text.startswith(f"{where}: ") else ""
    typer.echo(f"{place}{typer.style(word, fg=colour, bold=True)}: {text[len(place) :]}")


def _document(verdicts: list[Verdict], with_warnings: bool) -> dict[str, Any]:
    return {
        "valid": not any(verdict.errors for verdict in verdicts),
        "policies": [
            {
                "file": verdict.file,
                "name": verdict.name,
                "revision": verdict.revision,
                "errors": [error.fields() for error in verdict.errors],
                "warnings": [w.fields() for w in verdict.warnings] if with_warnings else [],
            }
            for verdict in verdicts
        ],
    }
