"""The list of sub-commands. Each is imported only when it is called, so that ``scope --help`` opens at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives: a function of the module, or ``app``, a Typer with commands of its own."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "check": Entry("check", "check", "Check policies: format, names, files."),
    "fmt": Entry("fmt", "fmt", "Lay out policies; comments stay."),
    "explain": Entry("explain", "explain", "Print what a policy compiles to on a model."),
    "test": Entry("test", "run_cases", "Run the tests that lie beside policies."),
    "record": Entry("record", "record", "Record residuals, for tests without the model."),
    "find": Entry("find", "find", "Find the features that a behaviour hangs on."),
    "sweep": Entry("sweep", "sweep", "Measure how strong a rule should be."),
    "label": Entry("label", "label", "List or write the labels of a pack."),
    "diff": Entry("diff", "diff", "Say what changes from one policy to another."),
    "trace": Entry("trace", "trace", "Show which features a text lights up, token by token."),
    "compare": Entry("compare", "compare", "Say which features differ between texts or models."),
    "run": Entry("run", "run", "Generate an answer under a policy."),
    "bench": Entry("bench", "bench", "Measure tokens a second with a policy on and off."),
    "host": Entry("host", "host", "Answer prompts under policies that may change."),
    "serve": Entry("serve", "serve", "Serve OpenAI's API under policies."),
    "console": Entry("console", "console", "Open the operators' page on a model."),
    "api-key": Entry("api_key", "api_key", "Make a key for those who ask a server."),
    "status": Entry("control", "status", "Print what policies a running process obeys."),
    "plan": Entry("control", "plan", "Print what a reload would change there."),
    "reload": Entry("control", "reload", "Load the policies of a running process again."),
    "rollback": Entry("control", "rollback", "Put an earlier revision in force there."),
    "off": Entry("control", "off", "Stop all steering there by the next token."),
    "on": Entry("control", "on", "Steer again there."),
    "alerts": Entry("alerts", "app", "Print what fires there; test receivers; replay."),
    "bundle": Entry("bundle", "app", "Pack policies into one signed file, and fetch it."),
    "audit": Entry("audit", "app", "Look into audit logs; verify that nothing was changed."),
    "drift": Entry("drift", "app", "Say whether features still do what they did."),
    "convert": Entry("convert", "app", "Turn SAE files into feature packs."),
    "doctor": Entry("doctor", "doctor", "Say what works here, and prove the layer numbering."),
}


class LazyGroup(TyperGroup):
    """A command group that is a table of names until one of them is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def load(name: str, entry: Entry) -> Any:
    """The command as typer runs it."""
    found = getattr(importlib.import_module(f"scope_runtime.cli.{entry.module}"), entry.attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_command(found)
        group.name = name
        return group
    single = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    single.command(name)(found)
    return typer.main.get_command(single)
