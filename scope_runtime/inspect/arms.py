"""What else could explain an effect: the same rule on random features, and a mean difference, at the same dose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.strength import at_strength
from scope_runtime.pack_types import F32Array, PackLayer, PackModel, layer_name
from scope_runtime.packs import write_pack
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import GateKind, GroupFeature, Op, PackFeature, Policy, Rule
from scope_runtime.sae import FullLayer, SaeLayers
from scope_runtime.vectors import write_control_vector

if TYPE_CHECKING:
    from scope_runtime.types import ModelShape

OWN, RANDOM, MEAN = "policy", "random features", "mean difference"
SELDOM = 0.1
"""Random features are drawn from those that are active in this share of the texts or more."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy that can be had at any strength."""

    name: str
    at: Callable[[float], Policy]


def features_of(policy: Policy, rule: Rule) -> tuple[PackFeature, ...]:
    """The pack features that a rule acts on, groups resolved.

    Raises:
        UsageError: it acts on a control vector, which no SAE has features for.
    """
    names: list[str] = []
    for target in rule.targets:
        found = policy.feature(target)
        names += found.members if isinstance(found, GroupFeature) else [target]
    features = [policy.feature(name) for name in dict.fromkeys(names)]
    return tuple(each for each in features if isinstance(each, PackFeature))


def own_arm(text: str, policy: Policy, rule: Rule) -> Arm:
    """The policy itself."""
    return Arm(OWN, lambda strength: at_strength(text, policy, rule.name, strength))


def random_arm(
    policy: Policy,
    rule: Rule,
    saes: SaeLayers,
    active: Mapping[int, Sequence[np.ndarray[Any, np.dtype[np.int32]]]],
    shape: ModelShape,
    folder: Path,
    seed: int,
) -> Arm:
    """As many random features of the same layers, under a rule that is else the same.

    Args:
        policy: with the rule.
        rule: as it stands.
        saes: whole layers, with all that the rule acts on.
        active: per layer, for each of some texts the features that are active in it.
        shape: of the model.
        folder: for a pack of them.
        seed: of the draw.

    Raises:
        UsageError: too few features are active to draw from.
        PackError: the SAEs do not hold the directions.
    """
    rng = np.random.default_rng(seed)
    own = features_of(policy, rule)
    layers: list[PackLayer] = []
    features: dict[str, dict[str, Any]] = {}
    for number in sorted({each.layer for each in own}):
        taken = {each.id for each in own if each.layer == number}
        ids, counts = np.unique(np.concatenate(active[number]), return_counts=True)
        often = ids[counts >= max(1, SELDOM * len(active[number]))]
        pool = often[~np.isin(often, list(taken))]
        if len(pool) < len(taken):
            raise UsageError(
                f"too few features are active at layer {layer_name(number)} to draw from",
                found=str(len(pool)),
                expected=f"{len(taken)} or more",
            )
        drawn = np.sort(rng.choice(pool, len(taken), replace=False)).astype(np.int64)
        layers.append(_pack_layer(saes.layer(number), drawn, exact=rule.op is not Op.AMPLIFY))
        for id in drawn.tolist():
            features[f"random-{len(features) + 1}"] = {
                "pack": "random.gguf", "layer": layer_name(number) if number < 0 else number, "id": id,
            }  # fmt: skip
    model = PackModel(shape.architecture, shape.n_layer, shape.n_embd)
    write_pack(folder / "random.gguf", model, layers)
    targets = list(features)
    key = "amplify" if rule.op is Op.AMPLIFY else "scale"

    def at(strength: float) -> Policy:
        given: dict[str, Any] = {key: targets}
        if rule.op is Op.AMPLIFY:
            given |= {"alpha": strength, "unit": str(rule.unit)}
        else:
            given["factor"] = 1.0 - strength
        return _policy(policy, rule, features, given, folder)

    return Arm(RANDOM, at)


def mean_arm(
    policy: Policy, rule: Rule, layer: int, direction: F32Array, sign: float, folder: Path
) -> Arm:
    """The mean difference of two kinds of texts, added or taken away; strength is its dose."""
    write_control_vector(folder / "mean.gguf", {layer: direction})
    features = {"mean": {"vector": "mean.gguf"}}

    def at(strength: float) -> Policy:
        given = {"amplify": "mean", "alpha": sign * strength, "unit": "residual"}
        return _policy(policy, rule, features, given, folder)

    return Arm(MEAN, at)


def scaled(arm: Arm, by: float) -> Arm:
    """The same arm at other strengths, so that its dose is another's."""
    return Arm(arm.name, lambda strength: arm.at(by * strength))


def _policy(
    policy: Policy, rule: Rule, features: Mapping[str, Any], given: Mapping[str, Any], folder: Path
) -> Policy:
    """A policy of one rule: named and placed as the other's, else as given."""
    document = json.loads(policy.canonical)
    [raw] = [each for each in document["spec"]["rules"] if each["name"] == rule.name]
    when = raw.get("when", {})
    if "feature" in when:
        raise UsageError(
            "an arm cannot be made of a rule that hangs on a feature",
            location=rule.location,
            found="when.feature",
        )
    spec = {
        "features": features,
        "rules": [{"name": rule.name, **given, **({"when": when} if when else {})}],
    }
    head = {"apiVersion": "scope/v1", "kind": "SteeringPolicy", "metadata": {"name": policy.name}}
    return parse_policy(json.dumps({**head, "spec": spec}), file=str(folder / "arm.yaml"))


def _pack_layer(
    layer: FullLayer, ids: np.ndarray[Any, np.dtype[np.int64]], *, exact: bool
) -> PackLayer:
    encoder = layer.encoder
    whole = exact and layer.gate is GateKind.TOPK
    gate = layer.gate if whole or layer.gate is not GateKind.TOPK else GateKind.NONE
    return PackLayer(
        layer=layer.layer,
        ids=ids,
        labels=("",) * len(ids),
        enc=encoder.take(ids),
        enc_bias=encoder.bias[ids].astype(np.float32),
        dec=layer.decoder(ids.tolist()),
        gate=gate,
        k=layer.k if whole else None,
        thresholds=encoder.thresholds[ids] if encoder.thresholds is not None else None,
        full_enc=encoder.take(slice(0, encoder.d_sae)) if whole else None,
        full_enc_bias=encoder.bias.astype(np.float32) if whole else None,
        d_sae=layer.d_sae,
    )
