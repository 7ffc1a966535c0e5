"""``scope explain``: the compiled program in words and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import GpuLayersOption, JsonOption, RootOption, parse_labels

if TYPE_CHECKING:
    from scope_runtime.policy.model import Policy, Rule, When
    from scope_runtime.program import Program, ProgramRule
    from scope_runtime.select import ProgramSource

PLANES = {"callback": "callback", "control-vector": "control vector"}


def explain(
    policy: Annotated[
        Path,
        typer.Argument(
            metavar="POLICY",
            help="The policy file, a directory of policies, or a runtime's scope.yaml.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="The model (GGUF).  [default: the one that the policy's packs were made for]",
        ),
    ] = None,
    root: RootOption = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="KEY=VALUE",
            help="Only what a request with this label gets; may be repeated.",
        ),
    ] = None,
    request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="For rollouts by request.")
    ] = "explained",
    n_gpu_layers: GpuLayersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Print what a policy compiles to: per layer which rule does what, by which way, and why.

    Only the header of the model file is read; nothing is loaded or run. Of a runtime's configuration
    every key is printed first, with its value and whether a change of it needs a restart.

    \b
    Examples:
      scope explain policies/english-only.yaml --model model.gguf
      scope explain policies/english-only.yaml --model model.gguf --n-gpu-layers -1
      scope explain policies/ --labels tenant=acme
      scope explain scope.yaml
    """
    from scope_runtime.cli.verdict import is_config
    from scope_runtime.policy.load import load_policies

    before: dict[str, Any] = {}
    if policy.is_file() and is_config(policy):
        from scope_runtime.cli.explain_config import config_data, print_config
        from scope_runtime.lifecycle.config import load_config

        config = load_config(policy)
        if as_json:
            before = {"configuration": config_data(config)}
        else:
            print_config(config)
        if not isinstance(config.policy, Path):
            _explain_no_policies(config.policy.where, before)
            return
        policy, root = config.policy, config.policy_root
        model = model or (config.model if config.model.exists() else None)
        n_gpu_layers = n_gpu_layers or config.n_gpu_layers
    source = _compile(load_policies(policy, root=root), model, n_gpu_layers)
    program = source.program
    exempted: tuple[str, ...] = ()
    if labels is not None:
        wanted = parse_labels(labels)
        program = source.for_request(wanted, request_id)
        exempted = source.exempted(wanted)
    if as_json:
        data = before | program_data(source, program, exempted)
        print(json.dumps(data, ensure_ascii=False))
    else:
        _print(source, program, model)
        for name in exempted:
            print(f"exempted: {name}")


def _explain_no_policies(where: str, configuration: dict[str, Any]) -> None:
    if configuration:
        print(json.dumps(configuration, ensure_ascii=False))
    else:
        print(f"the policies come as bundles from {where}; `scope bundle inspect` prints one")


def _compile(policies: Sequence[Policy], model: Path | None, n_gpu_layers: int) -> ProgramSource:
    from scope_runtime.compile import assumed_shape
    from scope_runtime.merge import merged
    from scope_runtime.resolve import load_artefacts
    from scope_runtime.select import ProgramSource

    if model is None:
        whole = merged(policies)
        return ProgramSource(policies, assumed_shape(whole, load_artefacts(whole)))
    from scope_runtime.llama.checks import check_model
    from scope_runtime.types import ModelShape

    info = check_model(model)
    # llama.cpp offloads the last blocks first.
    offloaded = info.n_layer if n_gpu_layers < 0 else min(n_gpu_layers, info.n_layer)
    return ProgramSource(
        policies,
        ModelShape(info.architecture, info.n_layer, info.n_embd),
        control_vector_layers=frozenset(range(info.n_layer - offloaded, info.n_layer)),
    )


def program_data(
    source: ProgramSource, program: Program, exempted: Sequence[str] = ()
) -> dict[str, Any]:
    """The program as JSON-ready data, rules by layer."""
    amounts = _amounts(source)
    return {
        "policy": program.policy,
        "policies": dict(source.revisions),
        "exempted": list(exempted),
        "revision": program.revision,
        "program": program.digest,
        "mode": _mode(source),
        "model": {
            "architecture": program.architecture,
            "layers": program.n_layer,
            "width": program.n_embd,
        },
        "program_bytes": len(program.blob),
        "packs": dict(program.packs),
        "layers": [
            {
                "layer": layer,
                "rules": [
                    {
                        "rule": rule.name,
                        **({"policy": rule.policy} if rule.policy else {}),
                        "op": str(rule.op),
                        "mode": str(rule.mode),
                        "amount": amounts[rule.policy, rule.name],
                        "features": features_at(rule, layer),
                        "plane": plane_at(program, rule, layer),
                        "why": rule.why,
                    }
                    for rule in rules
                ],
            }
            for layer, rules in by_layer(program)
        ],
        "notes": list(program.notes),
    }


def _amounts(source: ProgramSource) -> dict[tuple[str, str], str]:
    """By (policy, rule); the policy is empty where there is only one, as in ``ProgramRule``."""
    several = len(source.policies) > 1
    return {
        (policy.name if several else "", rule.name): amount(rule)
        for policy in source.policies
        for rule in policy.rules
    }


def _mode(source: ProgramSource) -> str:
    """The policy's mode; of several, the strongest."""
    order = ["off", "audit", "enforce"]
    return max((str(policy.mode) for policy in source.policies), key=order.index)


def by_layer(program: Program) -> list[tuple[int, list[ProgramRule]]]:
    """Each layer where something happens, ascending, with its rules."""
    layers = sorted({layer for rule in program.rules for layer in rule.layers})
    return [(layer, [rule for rule in program.rules if layer in rule.layers]) for layer in layers]


def plane_at(program: Program, rule: ProgramRule, layer: int) -> str:
    """A rule may act at some of its layers through one plane, at others through the other."""
    return "control-vector" if layer in program.control_vectors else "callback"


def features_at(rule: ProgramRule, layer: int) -> list[str]:
    """Those of a rule's features that lie at one layer."""
    return [str(target) for target in rule.targets if target.layer == layer]


def amount(rule: Rule) -> str:
    """How much, when and for whom a rule acts, in words."""
    parts = []
    if rule.alpha is not None:
        unit = f" {rule.unit}" if rule.unit else ""
        parts.append(f"alpha {rule.alpha:g}{unit}")
    if rule.factor is not None:
        parts.append(f"factor {rule.factor:g}")
    if rule.min is not None:
        parts.append(f"min {rule.min:g}")
    if rule.max is not None:
        parts.append(f"max {rule.max:g}")
    if rule.alert is not None:
        alert = rule.alert
        parts += _bounds(alert.above, alert.below)
        if alert.for_tokens > 1:
            parts.append(f"for {alert.for_tokens} tokens")
        parts.append(str(alert.severity))
        parts += [f"then {action}" for action in alert.actions if action == "abort"]
        parts += [f"switches on {name}" for name in alert.switch_on]
    parts += _when(rule.when)
    if rule.rollout is not None:
        parts.append(f"for {rule.rollout.percent:g} % by {rule.rollout.by}")
    return ", ".join(parts)


def _bounds(above: float | None, below: float | None) -> list[str]:
    return [
        f"{word} {value:g}"
        for word, value in (("above", above), ("below", below))
        if value is not None
    ]


def _when(when: When) -> list[str]:
    parts = []
    if when.phase is not None:
        parts.append(f"in the {when.phase}")
    if when.positions is not None:
        first, last = when.positions.first, when.positions.last
        span = f"from {0 if first is None else first}" + ("" if last is None else f" to {last}")
        parts.append(f"at positions {span} of the {when.positions.of}")
    if when.condition is not None:
        condition = when.condition
        bounds = " and ".join(_bounds(condition.above, condition.below))
        parts.append(f"while {condition.feature} is {bounds}")
    return parts


def _print(source: ProgramSource, program: Program, model: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    shape = f"{program.architecture}, {program.n_layer} blocks, {program.n_embd} wide"
    where = model or "the model of its packs"
    mode = _mode(source)
    console.print(f"{program.policy} ({mode}) on {where} ({shape})", style="bold", soft_wrap=True)
    console.print(f"revision {program.revision}", style="dim", soft_wrap=True)
    size = f"{len(program.blob):,} bytes"
    console.print(f"program  {program.digest}, {size}", style="dim", soft_wrap=True)
    for policy in source.policies:
        if policy.dose_limit is not None:
            limit = policy.dose_limit
            of = f" by {policy.name}" if len(source.policies) > 1 else ""
            console.print(f"dose at most {limit.max:g}, else {limit.on_excess}{of}")
    if not program.rules:
        console.print("Nothing acts: the model runs as it is.")
    else:
        amounts = _amounts(source)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("layer", "rule", "does", "how much, when", "features", "plane"):
            table.add_column(title, overflow="fold")
        for layer, rules in by_layer(program):
            shown = "embedding" if layer < 0 else str(layer)
            for rule in rules:
                own = "" if rule.mode == mode else f" ({rule.mode})"
                table.add_row(
                    shown,
                    f"{rule.policy}: {rule.name}" if rule.policy else rule.name,
                    f"{rule.op}{own}",
                    amounts[rule.policy, rule.name],
                    "\n".join(features_at(rule, layer)),
                    PLANES[plane_at(program, rule, layer)],
                )
                shown = ""
        console.print()
        console.print(table)
        console.print()
        for rule in program.rules:
            console.print(f"{rule.name}: {rule.why}", soft_wrap=True)
    for note in program.notes:
        console.print(f"note: {note}", soft_wrap=True)
