"""Commands whose options come as a dataclass: on the command line nobody can tell."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from scope_runtime.cli.spread import spread

Name = Annotated[str | None, typer.Option("--name", help="Whose.")]


@dataclass(frozen=True, slots=True)
class Shared:
    name: Name = None
    times: Annotated[int, typer.Option("--times", "-n", min=1)] = 2


def by_hand(
    first: Annotated[str, typer.Argument()],
    before: bool = False,
    name: Name = None,
    times: Annotated[int, typer.Option("--times", "-n", min=1)] = 2,
    after: bool = False,
) -> None:
    """Says it."""
    typer.echo(f"{first} {before} {Shared(name, times)} {after}")


@spread
def together(
    first: Annotated[str, typer.Argument()],
    before: bool = False,
    *,
    shared: Shared,
    after: bool = False,
) -> None:
    """Says it."""
    typer.echo(f"{first} {before} {shared} {after}")


def said(command: object, *arguments: str) -> tuple[int, str]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("say")(command)  # type: ignore[type-var]
    done = CliRunner().invoke(app, list(arguments), prog_name="say")
    return done.exit_code, done.output


def test_a_spread_command_is_the_one_written_out() -> None:
    for arguments in (
        ["--help"],
        ["x"],
        ["x", "--before", "--name", "a b", "-n", "3", "--after"],
        ["--after", "--times", "7", "x"],
        ["x", "-n", "0"],
        ["x", "--shared", "1"],
        [],
    ):
        assert said(together, *arguments) == said(by_hand, *arguments)
    assert said(together, "x", "-n", "3")[1] == "x False Shared(name=None, times=3) False\n"


def test_the_signature_is_the_fields_in_their_place() -> None:
    assert list(inspect.signature(together).parameters) == list(
        inspect.signature(by_hand).parameters
    )
