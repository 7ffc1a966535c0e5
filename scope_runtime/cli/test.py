"""``scope test``: the cases that lie beside the policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import ContextOption, JsonOption, RootOption, ThreadsOption
from scope_runtime.errors import PolicyErrors, ScopeError, UsageError

if TYPE_CHECKING:
    from scope_runtime.cases.model import PolicyTest
    from scope_runtime.cases.run import CaseResult, TestRun
    from scope_runtime.policy.model import Policy

FAILED = 1


def run_cases(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATHS]",
            help="Test files (*.test.yaml), or directories of them.  [default: .]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="FILE", help="The model for cases that ask one and name none."
        ),
    ] = None,
    root: RootOption = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.")
    ] = None,
    min_coverage: Annotated[
        float | None,
        typer.Option(
            "--min-coverage",
            metavar="PERCENT",
            min=0,
            max=100,
            help="Fail if cases exercise fewer of the policies' rules.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    ctx: ContextOption = 1024,
    as_json: JsonOption = False,
) -> None:
    """Run policies' tests: on recordings without a model, or on a small model.

    A case says what a request must come to: at how many tokens which rule acts and how hard, which
    alert fires, what the answer holds. Rules that no case exercised are named.
    Exit code 0: all passed; 1: a case failed, a file is invalid or coverage is too low; 2: wrong usage.

    \b
    Examples:
      scope test policies/
      scope test policies/english-only.test.yaml --junit report.xml --min-coverage 100
    """
    files, policies = _gather(paths or [Path()])
    from scope_runtime.cases.load import load_test
    from scope_runtime.cases.run import run_tests
    from scope_runtime.files import written_whole
    from scope_runtime.policy.load import load_policy

    tests: list[PolicyTest] = []
    errors: list[ScopeError] = []
    for file in files:
        try:
            tests.append(load_test(file, root=root))
        except PolicyErrors as several:
            errors += several.errors
    tested = {Path(each.policy.file).resolve() for each in tests}
    untested: list[Policy] = []
    for path in policies:
        if path.resolve() not in tested:
            try:
                untested.append(load_policy(path, root=root))
            except PolicyErrors as several:
                errors += several.errors

    def each(test: PolicyTest, result: CaseResult) -> None:
        if not as_json:
            _say(test, result)

    run = run_tests(
        tests, untested=untested, model=model, root=root, n_threads=threads, n_ctx=ctx, each=each
    )
    if junit is not None:
        from scope_runtime.cases.junit import junit as written

        with written_whole(junit, UsageError) as temporary:
            temporary.write_bytes(written(run))
    errors = list({str(error): error for error in errors}.values())
    low = min_coverage is not None and run.coverage * 100 < min_coverage
    if as_json:
        print(json.dumps(_data(run, errors), ensure_ascii=False))
    else:
        _summary(run, errors, low=low, min_coverage=min_coverage)
    failed = any(not r.passed for results in run.results.values() for r in results)
    if failed or errors or low:
        raise typer.Exit(FAILED)


def _gather(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Test files, and the policies of directories: those without a test have rules that no case exercised."""
    from scope_runtime.cases.load import is_test
    from scope_runtime.policy.load import policy_files

    tests: list[Path] = []
    policies: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if is_test(child))
            if not inside:
                raise UsageError(
                    "no test in the directory", found=str(path), expected="*.test.yaml"
                )
            tests += inside
            policies += policy_files(path)
        elif path.exists():
            tests.append(path)
        else:
            raise UsageError("no such file or directory", found=str(path))
    return list(dict.fromkeys(tests)), list(dict.fromkeys(policies))


def _say(test: PolicyTest, result: CaseResult) -> None:
    word, colour = ("ok", typer.colors.GREEN) if result.passed else ("FAILED", typer.colors.RED)
    typer.echo(f"{test.file}: {result.case.name}: {typer.style(word, fg=colour, bold=True)}")
    for failure in result.failures:
        typer.echo(f"  {failure}")


def _summary(
    run: TestRun, errors: list[ScopeError], *, low: bool, min_coverage: float | None
) -> None:
    results = [result for several in run.results.values() for result in several]
    for error in errors:
        typer.echo(f"error: {error}", err=True)
    for file, names in run.rules.items():
        for name in names:
            if name not in run.exercised[file]:
                typer.echo(f"{file}: no case exercises the rule {name}")
    n_rules = sum(len(names) for names in run.rules.values())
    n_exercised = sum(len(names) for names in run.exercised.values())
    n_failed = sum(not result.passed for result in results)
    typer.echo(
        f"{len(results)} cases, {n_failed} failed; {n_exercised} of {n_rules} rules exercised"
        + (f", fewer than {min_coverage:g} %" if low else "")
    )


def _data(run: TestRun, errors: list[ScopeError]) -> dict[str, Any]:
    return {
        "passed": not errors and all(r.passed for s in run.results.values() for r in s),
        "errors": [error.fields() for error in errors],
        "tests": [
            {
                "file": file,
                "cases": [
                    {
                        "name": result.case.name,
                        "line": result.case.location.line,
                        "passed": result.passed,
                        "seconds": round(result.seconds, 6),
                        "failures": [failure.fields() for failure in result.failures],
                    }
                    for result in results
                ],
            }
            for file, results in run.results.items()
        ],
        "coverage": {
            "share": round(run.coverage, 6),
            "policies": [
                {
                    "file": file,
                    "exercised": [name for name in names if name in run.exercised[file]],
                    "not_exercised": [name for name in names if name not in run.exercised[file]],
                }
                for file, names in run.rules.items()
            ],
        },
    }
