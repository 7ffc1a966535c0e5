"""From what was found to what runs: the command that makes a pack, and a policy to start from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_runtime.errors import Location, PolicyError, UsageError
from scope_runtime.files import written_whole
from scope_runtime.pack_types import layer_name
from scope_runtime.policy.model import EMBEDDING, GateKind
from scope_runtime.types import StrEnum

if TYPE_CHECKING:
    from scope_runtime.inspect.found import Found, FoundFeature
    from scope_runtime.llama.checks import ModelInfo
    from scope_runtime.sae.layers import SaeLayers

AMPLIFY_ALPHA = 0.3
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class RuleKind(StrEnum):
    """What the policy shall do with what was found."""

    MUTE = "mute"
    AMPLIFY = "amplify"
    ALERT = "alert"


_PURPOSE = {
    RuleKind.MUTE: "mute what scope find found",
    RuleKind.AMPLIFY: "amplify what scope find found",
    RuleKind.ALERT: "say when what scope find found is active",
}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A policy and what it needs.

    Attributes:
        policy: YAML.
        pack: where the policy expects its pack.
        command: makes the pack, as arguments; None: the features came from a pack, which is it.
    """

    policy: str
    pack: Path
    command: tuple[str, ...] | None

    @property
    def shell(self) -> str | None:
        """The command as a person types it."""
        return None if self.command is None else shlex.join(self.command)


def taken(found: Found, n_groups: int = 1) -> tuple[FoundFeature, ...]:
    """What a policy would act on: of the first groups the significant features, or else the very first."""
    first = [feature for group in found.groups[:n_groups] for feature in group]
    return tuple(filter(found.is_significant, first)) or tuple(first[:1])


def snippet(
    features: Sequence[FoundFeature],
    saes: SaeLayers,
    model: ModelInfo,
    policy: Path,
    kind: RuleKind = RuleKind.MUTE,
) -> Snippet:
    """A policy of one rule on some features, in the layout of ``scope fmt``.

    Args:
        features: what it acts on; amplified is the first alone.
        saes: where they were found.
        model: that they were found in.
        policy: file that the policy is for; its name becomes the policy's, and the pack lies beside it.
        kind: of the rule.

    Raises:
        UsageError: no features, or the file's name can be no policy's.
    """
    from scope_runtime.policy.format import formatted

    name = policy.name.partition(".")[0]
    if not _NAME.fullmatch(name):
        raise UsageError(
            "the file's name cannot be a policy's",
            found=repr(name),
            expected="small letters, digits and hyphens, such as english-only.yaml",
        )
    if not features:
        raise UsageError("there is no feature to write a policy for")
    if kind is RuleKind.AMPLIFY:
        features = features[:1]
    names = [_feature_name(each, name, i) for i, each in enumerate(features)]
    if saes.kind == "feature pack":
        pack, command = Path(saes.path), None
        shown = pack.name if pack.parent == policy.parent else str(pack)
    else:
        pack = policy.with_suffix(".gguf")
        command = _command(features, names, saes, model, pack)
        shown = pack.name
    lines = [
        "# A start, from `scope find`. Try it on other texts, give it an owner, and see what else it does.",
        "apiVersion: scope/v1",
        "kind: SteeringPolicy",
        "metadata:",
        f"  name: {name}",
        f"  description: {_PURPOSE[kind]}",
        "spec:",
        f"  model: {{architecture: {model.architecture}, layers: {model.n_layer}, "
        f"width: {model.n_embd}}}",
        "  features:",
        *(
            f"    {own}: {{pack: {shown}, layer: {layer_name(each.rank.layer)}, id: {each.rank.id}}}"
            f"  # AUROC {each.rank.auroc:.2f}, effect {each.rank.effect:.1f}"
            for own, each in zip(names, features, strict=True)
        ),
    ]
    target = names[0]
    if len(names) > 1:
        target = f"{name}-group"
        lines.append(f"    {target}: {{group: [{', '.join(names)}]}}")
    lines += ["  rules:", f"    - name: {name}", *_rule(kind, target, features)]
    text = "\n".join(lines) + "\n"
    return Snippet(formatted(text, str(policy)), pack, command)


def write_policy(made: Snippet, path: Path) -> None:
    """Write the policy to a new file.

    Raises:
        UsageError: there is such a file; a policy that somebody wrote is not replaced.
        PolicyError: it cannot be written.
    """
    if path.exists():
        raise UsageError(
            "the policy is there already",
            location=Location(str(path)),
            hint="Give another name to --write-policy, or move the file away",
        )
    with written_whole(path, PolicyError) as temporary:
        temporary.write_text(made.policy, encoding="utf-8", newline="\n")


def _feature_name(feature: FoundFeature, name: str, number: int) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", feature.label.lower()).strip("-")
    if _NAME.fullmatch(label) and len(label) <= 40:
        return label
    return f"{name[:40]}-{number + 1}"


def _rule(kind: RuleKind, target: str, features: Sequence[FoundFeature]) -> list[str]:
    body: list[tuple[str, Any]] = [(str(kind), target)]
    if kind is RuleKind.AMPLIFY:
        body += [("alpha", AMPLIFY_ALPHA), ("unit", "residual")]
    if kind is RuleKind.ALERT:
        body += [("above", round(max(each.threshold for each in features), 2))]
        body += [("severity", "warning"), ("actions", "[log]")]
    return [f"      {key}: {value}" for key, value in (*body, ("when", "{phase: generation}"))]


def _command(
    features: Sequence[FoundFeature],
    names: Sequence[str],
    saes: SaeLayers,
    model: ModelInfo,
    pack: Path,
) -> tuple[str, ...]:
    words = ["scope", "convert", "pack", saes.path]
    for own, each in zip(names, features, strict=True):
        layer = "embedding" if each.rank.layer == EMBEDDING else str(each.rank.layer)
        words += ["-f", f"{layer}:{each.rank.id}={own}"]
    for layer_number in sorted({each.rank.layer for each in features}):
        if saes.layer(layer_number).gate is GateKind.TOPK:
            words += ["--exact-gate", str(layer_number)]
    return (*words, "--model", model.path, "-o", str(pack))
