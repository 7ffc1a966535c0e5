"""The ``scope`` command: one sub-command per file of this folder, and the one place where errors become exit codes.

Exit codes: 0 fine, 1 something given is invalid, 2 the command was used wrongly, 3 lint findings
only, 70 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from scope_runtime.cli.commands import LazyGroup
from scope_runtime.errors import ScopeError
from scope_runtime.version import __version__

FAULT = 70
INTERRUPTED = 130

app = typer.Typer(
    name="scope",
    cls=LazyGroup,
    no_args_is_help=True,
    # Plain help: it opens three times as fast, and keeps its examples as they are written.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Policy as code for the inside of a language model.

A policy is a YAML file that mutes, scales, amplifies or watches features of a model that
llama.cpp runs.

\b
  scope check policies/english-only.yaml
  scope explain policies/english-only.yaml --model model.gguf
  scope run --model model.gguf --policy policies/english-only.yaml --prompt "…"
""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


def run() -> None:
    """Entry point of the console script: runs the command line and exits."""
    # As an exception, so that what is half written is removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code.

    Expected errors are one line on stderr, or one JSON document on stdout where the command was
    asked for ``--json``; anything else is our fault and keeps its traceback.
    """
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except ScopeError as error:
        _report(error, as_json="--json" in arguments)
        return error.exit_code
    except BrokenPipeError:
        # The reader (head, less) has gone. Nothing more may be written, not even by the
        # interpreter when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        print(
            f"\nThis is a fault in scope {__version__}, not in what you gave it. Please report it "
            "with the lines above and the output of `scope doctor`.",
            file=sys.stderr,
        )
        return FAULT
    return code


def _dispatch(arguments: list[str]) -> int:
    try:
        app(arguments, prog_name="scope")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _report(error: ScopeError, *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(error.fields(), ensure_ascii=False))
        return
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
