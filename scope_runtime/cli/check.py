"""``scope check``: is the policy right, and if not, where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scope_runtime.cli import findings
from scope_runtime.cli.findings import Finding
from scope_runtime.cli.options import RootOption
from scope_runtime.cli.verdict import Verdict, check_paths
from scope_runtime.errors import Location
from scope_runtime.types import StrEnum

INVALID = 1
LINT_ONLY = 3


class Form(StrEnum):
    """How findings are written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Policy files, directories of them, or a runtime's scope.yaml.",
            show_default=False,
        ),
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

    The policies of a directory are also held against each other: they are in force together. A
    runtime's configuration is checked with the policies that it names, and on its model if that is
    there.

    Prints one line for each error and warning, with file, line and column. Exit code 0: all fine;
    1: something is invalid; 2: wrong usage; 3: warnings only.

    \b
    Examples:
      scope check policies/english-only.yaml
      scope check policies/ --no-warnings
      scope check scope.yaml
      scope check --json policies/*.yaml | jq .policies[].revision
      scope check --format sarif policies/ > scope.sarif
    """
    verdicts = check_paths(paths, root, files=files)
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
