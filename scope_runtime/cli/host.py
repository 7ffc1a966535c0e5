"""``scope host``: a long-running process that follows its policies and answers prompts, one a line, from stdin."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def host(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration.")] = Path(
        "scope.yaml"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Only check it, and say what a change of a key needs.")
    ] = False,
) -> None:
    """Run a model under policies that may change, and answer prompts from stdin.

    Each line is a prompt, or a JSON object {"prompt": …, "labels": {…}, "max_tokens": …,
    "temperature": …, "seed": …}; each answer is one line of JSON. SIGHUP reloads, SIGUSR1 switches
    all steering off, SIGUSR2 on; the commands status, plan, reload, rollback, off and on do the
    same, and say what came of it. What becomes of the policies is told on stderr.

    \b
    Examples:
      scope host scope.yaml --check
      scope host scope.yaml < prompts.txt
    """
    from scope_runtime.signals import hold_signals

    hold_signals()
    from scope_runtime.lifecycle.config import changes, load_config

    read = load_config(config)
    if check:
        for key, how in changes():
            print(f"{how:8} {key}")
        return
    from scope_runtime.cli.told import Told
    from scope_runtime.configured import configured
    from scope_runtime.told import tell

    with configured(read, Told()) as runtime:
        runtime.hosted.handle_signals()
        tell(f"ready: {runtime.hosted.lifecycle.revision}")
        for line in sys.stdin:
            if line.strip():
                print(json.dumps(_answer(runtime, line), ensure_ascii=False), flush=True)


def _answer(runtime: Any, line: str) -> dict[str, Any]:
    from scope_runtime.cli.report import generation_data
    from scope_runtime.errors import ScopeError, UsageError

    try:
        asked = _asked(line)
        prompt = asked.pop("prompt")
        return generation_data(runtime.chat(prompt, **asked))
    except (KeyError, TypeError, ValueError):
        return UsageError("not a prompt", found=line.strip()[:200]).fields()
    except ScopeError as error:
        return error.fields()


def _asked(line: str) -> dict[str, Any]:
    if not line.lstrip().startswith("{"):
        return {"prompt": line.rstrip("\n")}
    asked = json.loads(line)
    known = ("prompt", "labels", "max_tokens", "temperature", "seed", "request_id")
    if set(asked) - set(known):
        raise ValueError
    return dict(asked)
