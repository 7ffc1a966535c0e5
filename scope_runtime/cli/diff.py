"""``scope diff``: what changes from one policy to another, in the file, on a recording, on a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import ContextOption, JsonOption, RootOption, ThreadsOption
from scope_runtime.errors import UsageError

if TYPE_CHECKING:
    from scope_runtime.diff import Change, PolicyDiff, RecordingDiff
    from scope_runtime.select import ProgramSource

DIFFERENT = 1
_SHOWN = 160


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A policy, or a directory of them.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What it is compared with.")],
    recording: Annotated[
        Path | None,
        typer.Option("--recording", "-r", metavar="REC", help="Also compare on a recording."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="FILE", help="Also compare answers of this model."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="What it is asked: .txt, one a line; .jsonl."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Longest answer.")
    ] = 64,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take prompts as they are, without the chat template.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit 1 if the two differ in what they do.")
    ] = False,
    root: RootOption = None,
    threads: ThreadsOption = None,
    ctx: ContextOption = 1024,
    as_json: JsonOption = False,
) -> None:
    """Say what changes from policy A to policy B, layer by layer.

    With a recording: at how many of its tokens the residuals differ, and by what dose. With a model
    and prompts: how many greedy answers differ.

    \b
    Examples:
      scope diff old.yaml new.yaml
      scope diff old.yaml new.yaml --recording prompts.rec
      scope diff old.yaml new.yaml --model model.gguf --prompts prompts.txt --json
    """
    if (model is None) != (prompts is None):
        raise UsageError("--model and --prompts go together")
    from scope_runtime.diff import policy_diff, recording_diff
    from scope_runtime.recording import read_recording

    one, other = _source(a, root), _source(b, root)
    said = policy_diff(one, other)
    on_recording = (
        recording_diff(one.program, other.program, read_recording(recording))
        if recording is not None
        else None
    )
    answers = None
    if model is not None and prompts is not None:
        answers = _answers(model, (a, b), prompts, raw, max_tokens, root, threads, ctx)
    if as_json:
        print(json.dumps(_data(said, on_recording, answers), ensure_ascii=False))
    else:
        _print(said)
        if on_recording is not None:
            _print_recording(on_recording)
        if answers is not None:
            _print_answers(answers)
    if exit_code and not said.same_effect:
        raise typer.Exit(DIFFERENT)


def _source(path: Path, root: Path | None) -> ProgramSource:
    from scope_runtime.compile import assumed_shape
    from scope_runtime.merge import merged
    from scope_runtime.policy.load import load_policies
    from scope_runtime.resolve import load_artefacts
    from scope_runtime.select import ProgramSource

    policies = load_policies(path, root=root)
    whole = merged(policies)
    return ProgramSource(policies, assumed_shape(whole, load_artefacts(whole)))


def _answers(
    model: Path,
    policies: tuple[Path, Path],
    prompts: Path,
    raw: bool,
    max_tokens: int,
    root: Path | None,
    threads: int | None,
    ctx: int,
) -> list[dict[str, Any]]:
    """Each prompt with its answer under A and under B, greedy, on one loaded model."""
    from converters.texts import read_texts
    from scope_runtime.cli.progress import loading
    from scope_runtime.runtime import Runtime

    texts = read_texts(prompts)
    out: list[dict[str, Any]] = [
        {"prompt": text.text or text.messages[-1]["content"]} for text in texts
    ]
    with (
        loading(f"loading {model.name}", quiet=True) as progress,
        Runtime(
            model, policy_root=root, n_ctx=ctx, n_threads=threads, progress=progress
        ) as runtime,
    ):
        for side, policy in zip("ab", policies, strict=True):
            runtime.set_policy(policy)
            for text, entry in zip(texts, out, strict=True):
                if raw and not text.messages:
                    answer = runtime.generate(text.text, max_tokens=max_tokens, temperature=0.0)
                else:
                    messages = text.messages or ({"role": "user", "content": text.text},)
                    answer = runtime.chat(messages, max_tokens=max_tokens, temperature=0.0)
                entry[side] = answer.text
                entry[f"{side}_tokens"] = list(answer.tokens)
    for entry in out:
        entry["differs"] = entry.pop("a_tokens") != entry.pop("b_tokens")
    return out


def _data(
    said: PolicyDiff, on_recording: RecordingDiff | None, answers: list[dict[str, Any]] | None
) -> dict[str, Any]:
    from dataclasses import asdict

    from scope_runtime.diff import diff_data

    data = diff_data(said)
    if on_recording is not None:
        data["recording"] = asdict(on_recording)
    if answers is not None:
        differing = sum(answer["differs"] for answer in answers)
        data["answers"] = {"n": len(answers), "n_different": differing, "each": answers}
    return data


def _print(said: PolicyDiff) -> None:
    for change in said.settings:
        _print_change(f"policy {change.name}", change)
    for name, before, after in said.files:
        print(f"file {name}: {_short(before)} → {_short(after)}")
    for change in said.rules:
        where = "embedding" if change.layer == -1 else f"layer {change.layer}"
        _print_change(f"{where}: {change.name}", change)
    if said.same_effect:
        print("The same programs for the same requests: nothing that the model computes changes.")


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest.removeprefix("sha256:")[:12]


def _print_change(title: str, change: Change) -> None:
    kind = "new" if change.before is None else "gone" if change.after is None else "changed"
    print(f"{title}: {kind}")
    for key, before, after in change.lines():
        if change.before is None:
            print(f"  + {key}: {after}")
        elif change.after is None:
            print(f"  - {key}: {before}")
        else:
            print(f"  {key}: {before or 'none'} → {after or 'none'}")


def _print_recording(found: RecordingDiff) -> None:
    print(
        f"On the recording: {found.n_changed} of {found.n_tokens} tokens of {found.n_texts} texts "
        "are changed"
    )
    for layer in found.layers:
        where = "embedding" if layer.layer == -1 else f"layer {layer.layer}"
        dose = (
            f", dose {layer.dose_mean:.3g} on average, {layer.dose_max:.3g} at most"
            if layer.n_tokens
            else ""
        )
        print(f"  {where}: {layer.n_tokens} tokens{dose}")
    for rule, before, after in found.alerts:
        print(f"  alert {rule}: fires {before} times → {after} times")
    if found.n_ended:
        print(f"  {found.n_ended} texts end elsewhere")


def _print_answers(answers: list[dict[str, Any]]) -> None:
    from scope_runtime.visible import visible

    differing = [answer for answer in answers if answer["differs"]]
    print(f"On the model: {len(differing)} of {len(answers)} answers differ")
    for answer in differing:
        for sign, key in (("?", "prompt"), ("-", "a"), ("+", "b")):
            text = visible(answer[key]).replace("\n", " ")
            print(f"  {sign} {text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}")
