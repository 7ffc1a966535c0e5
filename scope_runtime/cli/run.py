"""``scope run``: one answer of a model under a policy, or beside the unsteered one."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import (
    AnswerContextOption,
    GpuLayersOption,
    JsonOption,
    ModelOption,
    RootOption,
    ThreadsOption,
    parse_labels,
)
from scope_runtime.errors import UsageError
from scope_runtime.types import MAX_SEED

if TYPE_CHECKING:
    from scope_runtime.llama.engine import Generation
    from scope_runtime.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the model, the same for the steered and the unsteered answer."""

    prompt: str
    system: str | None
    raw: bool
    max_tokens: int
    temperature: float
    seed: int | None
    labels: dict[str, str]

    def answer(self, runtime: Runtime, on_text: Callable[[str], None]) -> Generation:
        """Asks the runtime under its present policy; pieces of text go to ``on_text`` as they come."""
        ask: Any = runtime.generate if self.raw else runtime.chat
        what: Any = self.prompt
        if not self.raw:
            what = [{"role": "user", "content": self.prompt}]
            if self.system is not None:
                what.insert(0, {"role": "system", "content": self.system})
        pieces = ask(
            what,
            stream=True,
            labels=self.labels,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        last: Any = None
        # Closed whatever happens to the text: what is left open keeps the runtime waiting.
        with closing(pieces):
            for last in pieces:
                if isinstance(last, str):
                    on_text(last)
        return last  # type: ignore[no-any-return]


def run(
    model: ModelOption,
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask; - reads it from stdin."),
    ],
    policy: Annotated[
        Path | None, typer.Option("--policy", "-P", metavar="FILE", help="The policy to obey.")
    ] = None,
    root: RootOption = None,
    no_policy: Annotated[
        bool, typer.Option("--no-policy", help="Run unsteered, whatever --policy says.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Answer twice, unsteered and steered, side by side.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the prompt as it is, without the chat template."),
    ] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Longest answer.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")
    ] = 0.8,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, max=MAX_SEED, help="Of the draw.  [default: a random one]"
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", metavar="KEY=VALUE", help="A label of the request; may be repeated."
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option("--audit", metavar="FILE", help="Append every event to this JSONL file."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No report after the answer.")
    ] = False,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    ctx: AnswerContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate an answer under a policy.

    The answer goes to stdout as it is decoded; then a report on stderr says what each rule did.
    The prompt passes through the model's chat template unless --raw is given.

    \b
    Examples:
      scope run -m model.gguf -P english-only.yaml -p "How do I get to Suzhou?"
      scope run -m model.gguf -P english-only.yaml -p "…" --compare --temperature 0
      git diff | scope run -m model.gguf --no-policy -p - --system "Review this change."
      scope run -m model.gguf -P p.yaml -p "…" --labels tenant=acme --json | jq .revisions
    """
    if policy is None and not no_policy:
        raise UsageError("no policy is given", hint="Give --policy FILE, or --no-policy")
    if compare and (policy is None or no_policy):
        raise UsageError("--compare needs a policy to compare with", hint="Give --policy FILE")
    if raw and system is not None:
        raise UsageError("--system needs the chat template, and --raw leaves it out")
    if seed is None and compare:
        seed = random.randrange(2**31)  # both answers draw alike
    request = Request(
        _read_prompt(prompt), system, raw, max_tokens, temperature, seed, parse_labels(labels or [])
    )

    from scope_runtime.cli.progress import loading
    from scope_runtime.runtime import Runtime

    with (
        loading(f"loading {model.name}", quiet=quiet or as_json) as progress,
        Runtime(
            model,
            None if no_policy or compare else policy,
            policy_root=root,
            audit=audit,
            n_ctx=ctx,
            n_gpu_layers=n_gpu_layers,
            n_threads=threads,
            progress=progress,
        ) as runtime,
    ):
        progress(1.0)
        if not (quiet or as_json):
            for note in runtime.notes:
                print(f"note: {note}", file=sys.stderr)
        if compare:
            _compare(runtime, policy, request, as_json=as_json, quiet=quiet)
        else:
            _answer(runtime, request, as_json=as_json, quiet=quiet)


def _read_prompt(prompt: str) -> str:
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    if not text.strip():
        raise UsageError("the prompt is empty", hint="Give --prompt TEXT, or - and text on stdin")
    return text


def _answer(runtime: Runtime, request: Request, *, as_json: bool, quiet: bool) -> None:
    from scope_runtime.cli.report import generation_data, print_report
    from scope_runtime.visible import visible

    if as_json:
        answer = request.answer(runtime, lambda piece: None)
        print(json.dumps(generation_data(answer), ensure_ascii=False))
        return

    on_terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        sys.stdout.write(visible(piece) if on_terminal else piece)
        sys.stdout.flush()

    answer = request.answer(runtime, show)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not quiet:
        print_report(answer, runtime.program)


def _compare(
    runtime: Runtime, policy: Path | None, request: Request, *, as_json: bool, quiet: bool
) -> None:
    from scope_runtime.cli.report import generation_data, print_report, print_side_by_side

    # The policy first: one that is refused should be so before anything is decoded.
    runtime.set_policy(policy)
    steered = request.answer(runtime, lambda piece: None)
    program = runtime.program
    runtime.set_policy(None)
    unsteered = request.answer(runtime, lambda piece: None)
    if as_json:
        both = {"unsteered": generation_data(unsteered), "steered": generation_data(steered)}
        print(json.dumps(both, ensure_ascii=False))
        return
    print_side_by_side(unsteered, steered, program)
    if not quiet:
        print_report(steered, program)
