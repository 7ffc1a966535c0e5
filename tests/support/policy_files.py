"""Writes the reference's rules as a policy file: one description drives both sides of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.random_pack import RandomPack
from tests.support.torch_reference import EMBEDDING, Condition, Latent, Rule, Vector


def write_policy(
    path: Path,
    pack: RandomPack,
    rules: Sequence[Rule],
    *,
    dose_max: float | None = None,
    mode: str = "enforce",
) -> Path:
    """Writes the policy beside the pack's files (``path`` must lie in ``pack.folder``)."""
    features = _Features(pack)
    written: list[dict[str, Any]] = []
    for number, rule in enumerate(rules):
        name = f"rule-{number}"
        written.append({"name": name, **_operation(rule, features), **_when(rule, features)})
        if rule.mode != "enforce":
            written[-1]["mode"] = rule.mode
        if rule.condition is not None and rule.condition.latch:
            written.append(_switching_alert(rule.condition, name, features))
    spec: dict[str, Any] = {"mode": mode, "features": features.written, "rules": written}
    if dose_max is not None:
        spec["limits"] = {"dose": {"max": dose_max, "on_excess": "clamp"}}
    document = {
        "apiVersion": "scope/v1",
        "kind": "SteeringPolicy",
        "metadata": {"name": path.stem},
        "spec": spec,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class _Features:
    """Names for the features that rules use, in the order of first use."""

    def __init__(self, pack: RandomPack) -> None:
        self._pack = pack
        self.written: dict[str, Any] = {}

    def name(self, target: Latent | Vector) -> str:
        where = "embedding" if target.layer == EMBEDDING else target.layer
        entry: dict[str, Any]
        if isinstance(target, Vector):
            name = f"vector-{where}"
            entry = {"vector": self._pack.vector_name, "layers": [target.layer]}
        else:
            gate: dict[str, Any] = {"kind": target.gate.kind}
            if target.gate.kind == "threshold":
                gate["threshold"] = target.gate.threshold
            if target.gate.kind == "topk":
                gate["k"] = target.gate.k
            name = f"{target.gate.kind}-{where}-{target.id}"
            entry = {"pack": self._pack.pack_name, "layer": where, "id": target.id, "gate": gate}
        if self.written.setdefault(name, entry) != entry:
            raise ValueError(f"two different features named {name}")
        return name

    def names(self, targets: Sequence[Latent | Vector]) -> list[str]:
        return [self.name(target) for target in targets]

    def group(self, latents: Sequence[Latent]) -> str:
        members = self.names(latents)
        if len(members) == 1:
            return members[0]
        name = f"group-{len(self.written)}"
        self.written[name] = {"group": members}
        return name


def _operation(rule: Rule, features: _Features) -> dict[str, Any]:
    out: dict[str, Any] = {rule.op: features.names(rule.targets)}
    if rule.op == "amplify":
        out |= {"alpha": rule.alpha, "unit": rule.unit}
    if rule.op == "scale":
        out["factor"] = rule.factor
    if rule.op == "clamp":
        out |= {k: v for k, v in (("min", rule.min), ("max", rule.max)) if v is not None}
    return out


def _when(rule: Rule, features: _Features) -> dict[str, Any]:
    when: dict[str, Any] = {}
    if rule.phase is not None:
        when["phase"] = rule.phase
    if rule.positions is not None:
        first, last = rule.positions
        bounds = {k: v for k, v in (("from", first), ("to", last)) if v is not None}
        when["positions"] = {**bounds, "of": rule.positions_of}
    condition = rule.condition
    if condition is not None and not condition.latch:
        when |= {"feature": features.group(condition.latents), **_bounds(condition)}
        when |= {"hysteresis": condition.hysteresis, "watch": condition.watch}
    return {"when": when} if when else {}


def _switching_alert(condition: Condition, rule: str, features: _Features) -> dict[str, Any]:
    return {
        "name": f"{rule}-switch",
        "alert": features.names(condition.latents),
        **_bounds(condition),
        "watch": condition.watch,
        **({"when": {"phase": condition.phase}} if condition.phase else {}),
        "actions": ["log", {"switch_on": rule}],
    }


def _bounds(condition: Condition) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if condition.above is not None:
        out["above"] = condition.above
    if condition.below is not None:
        out["below"] = condition.below
    if condition.for_tokens > 1:
        out["for"] = f"{condition.for_tokens} tokens"
    return out
