"""Two policies compared: what is other in the rules, layer by layer, and what it does to a recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from scope_runtime.errors import Location
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.model import Gate, GroupFeature, PackFeature, Policy, Rule
from scope_runtime.program import Program
from scope_runtime.recording import Recording
from scope_runtime.replay import Replay, hook_points, recorded_text, replay
from scope_runtime.select import ProgramSource

Fields = Mapping[str, str]
"""What a rule or a policy says, a leaf a key: ``alpha``, ``when.phase``, ``alert.above``."""


@dataclass(frozen=True, slots=True)
class Change:
    """One rule at one layer, or the settings of one policy: before None where it is new, after None where gone.

    Attributes:
        name: of the rule (``policy/rule`` in a set), or of the policy.
        layer: -1 is the embedding; None for a policy's settings.
    """

    name: str
    layer: int | None
    before: Fields | None
    after: Fields | None

    def lines(self) -> Iterator[tuple[str, str | None, str | None]]:
        """Each key that is not the same: key, before, after."""
        before, after = self.before or {}, self.after or {}
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                yield key, before.get(key), after.get(key)


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """What two sources of policies say differently.

    Attributes:
        same_effect: equal programs, given to the same requests: nothing that the model computes changes.
        files: packs and vectors whose content is not the same: name, digest before, digest after.
    """

    same_effect: bool
    settings: tuple[Change, ...]
    rules: tuple[Change, ...]
    files: tuple[tuple[str, str | None, str | None], ...]


@dataclass(frozen=True, slots=True)
class LayerEffect:
    """What the difference of two programs comes to at one layer of a recording.

    Attributes:
        n_tokens: at how many tokens the two leave different residuals.
        dose_max, dose_mean: ‖Δh of B - Δh of A‖ / ‖h‖ over those tokens; 0 where there is none.
    """

    layer: int
    n_tokens: int
    dose_max: float
    dose_mean: float


@dataclass(frozen=True, slots=True)
class RecordingDiff:
    """Two programs on one recording.

    Attributes:
        n_tokens: of the recording, as far as both programs came.
        n_changed: tokens at which some layer differs.
        layers: those where either program has a hook point, ascending.
        alerts: by rule, the firings under A and under B, where they differ.
        n_texts, n_ended: texts, and those of them that only one of the two ended early.
    """

    n_texts: int
    n_ended: int
    n_tokens: int
    n_changed: int
    layers: tuple[LayerEffect, ...]
    alerts: tuple[tuple[str, int, int], ...]


def diff_data(said: PolicyDiff) -> dict[str, Any]:
    """A difference as JSON-ready data; what is new has no ``before``, what is gone no ``after``."""

    def change(one: Change) -> dict[str, Any]:
        return {
            "name": one.name,
            **({} if one.layer is None else {"layer": one.layer}),
            "before": dict(one.before) if one.before is not None else None,
            "after": dict(one.after) if one.after is not None else None,
        }

    return {
        "same_effect": said.same_effect,
        "settings": [change(one) for one in said.settings],
        "rules": [change(one) for one in said.rules],
        "files": [{"name": n, "before": x, "after": y} for n, x, y in said.files],
    }


def policy_diff(a: ProgramSource, b: ProgramSource) -> PolicyDiff:
    """Compares what they say and what they compile to; rules and policies are known by their names."""
    packs_a, packs_b = dict(a.program.packs), dict(b.program.packs)
    settings = tuple(_changes(_settings(a), _settings(b)))
    rules = tuple(_changes(_rules(a), _rules(b)))
    return PolicyDiff(
        same_effect=a.program.digest == b.program.digest and not settings and not rules,
        settings=settings,
        rules=rules,
        files=tuple(
            (name, packs_a.get(name), packs_b.get(name))
            for name in sorted(packs_a.keys() | packs_b.keys())
            if packs_a.get(name) != packs_b.get(name)
        ),
    )


_Keyed = dict[tuple[int | None, str], Fields]


def _changes(a: _Keyed, b: _Keyed) -> Iterator[Change]:
    for layer, name in sorted(a.keys() | b.keys(), key=lambda key: (key[0] or 0, key[1])):
        before, after = a.get((layer, name)), b.get((layer, name))
        if before != after:
            yield Change(name, layer, before, after)


def _settings(source: ProgramSource) -> _Keyed:
    names = ("mode", "apply", "selector", "dose_limit", "exceptions", "model", "contents")
    return {
        (None, policy.name): _flat({name: getattr(policy, name) for name in names})
        for policy in source.policies
    }


def _rules(source: ProgramSource) -> _Keyed:
    several = len(source.policies) > 1
    written = {
        (p.name if several else "", r.name): (p, r) for p in source.policies for r in p.rules
    }
    out: _Keyed = {}
    for compiled in source.program.rules:
        policy, rule = written[compiled.policy, compiled.name]
        name = f"{compiled.policy}/{rule.name}" if several else rule.name
        said = _flat({**_shallow(rule), "name": None, "targets": None, "mode": None})
        for layer in compiled.layers:
            features = [str(target) for target in compiled.targets if target.layer == layer]
            gates = [
                f"{feature.name} {_gate(feature.gate)}"
                for feature in _measured(policy, rule)
                if feature.layer == layer and feature.gate is not None
            ]
            out[layer, name] = {
                **said,
                "mode": str(compiled.mode),
                "features": ", ".join(features),
                **({"gates": ", ".join(gates)} if gates else {}),
            }
    return out


def _measured(policy: Policy, rule: Rule) -> Iterator[PackFeature]:
    """The pack features that a rule acts on or waits for, groups opened."""
    names = list(rule.targets)
    if rule.when.condition is not None:
        names.append(rule.when.condition.feature)
    for name in names:
        feature = policy.feature(name)
        members = feature.members if isinstance(feature, GroupFeature) else (name,)
        for member in map(policy.feature, members):
            if isinstance(member, PackFeature):
                yield member


def _gate(gate: Gate) -> str:
    value = gate.threshold if gate.threshold is not None else gate.k
    return f"{gate.kind}({value!r})" if value is not None else str(gate.kind)


def _shallow(data: Any) -> dict[str, Any]:
    return {field.name: getattr(data, field.name) for field in fields(data)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves by their path; what is absent, and where things stand in their file, is left out."""
    out: dict[str, str] = {}
    for name, value in data.items():
        if value is None or value == () or isinstance(value, Location):
            continue
        if is_dataclass(value):
            out |= _flat(_shallow(value), f"{prefix}{name}.")
        elif isinstance(value, tuple) and all(is_dataclass(item) for item in value):
            for i, item in enumerate(value):
                out |= _flat(_shallow(item), f"{prefix}{name}[{i}].")
        else:
            out[f"{prefix}{name}"] = _text(value)
    return out


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(item) for item in value)
    return repr(value) if isinstance(value, float) else str(value)


def recording_diff(a: Program, b: Program, recording: Recording) -> RecordingDiff:
    """Runs both programs on every text of a recording.

    Raises:
        ReplayError: the recording lacks a layer that one of the programs needs.
    """
    points = sorted({*hook_points(a), *hook_points(b)})
    found: dict[int, list[F32Array]] = {layer: [] for layer in points}
    changed: list[F32Array] = []
    firings: dict[str, list[int]] = {}
    n_ended = 0
    for number in range(len(recording.texts)):
        text, n_prompt = recorded_text(recording, number, a)
        recorded_text(recording, number, b)
        one, other = replay(a, text, n_prompt), replay(b, text, n_prompt)
        n_ended += one.n_tokens != other.n_tokens
        n = min(one.n_tokens, other.n_tokens)
        here = np.zeros(n, np.float32)
        for layer in points:
            h = text.residual(layer)[:n]
            dose = _dose(one.residuals.get(layer, h)[:n], other.residuals.get(layer, h)[:n], h)
            found[layer].append(dose)
            here = np.maximum(here, dose)
        changed.append(here)
        for side, done in enumerate((one, other)):
            for rule, count in _firings(done).items():
                firings.setdefault(rule, [0, 0])[side] += count
    return RecordingDiff(
        n_texts=len(recording.texts),
        n_ended=n_ended,
        n_tokens=sum(len(each) for each in changed),
        n_changed=int(sum((each > 0).sum() for each in changed)),
        layers=tuple(_effect(layer, np.concatenate(doses)) for layer, doses in found.items()),
        alerts=tuple((rule, x, y) for rule, (x, y) in sorted(firings.items()) if x != y),
    )


def _dose(one: F32Array, other: F32Array, h: F32Array) -> F32Array:
    """‖other - one‖ / ‖h‖ at each token; 0 where they are equal, so that 0/0 is no difference."""
    moved = np.linalg.norm(other - one, axis=1)
    norms = np.linalg.norm(h, axis=1)
    out = np.zeros(len(h), np.float32)
    np.divide(moved, norms, out=out, where=(moved > 0) & (norms > 0))
    out[(moved > 0) & (norms == 0)] = np.inf
    return out


def _effect(layer: int, doses: F32Array) -> LayerEffect:
    acting = doses[doses > 0]
    if not acting.size:
        return LayerEffect(layer, 0, 0.0, 0.0)
    return LayerEffect(layer, acting.size, float(acting.max()), float(acting.mean()))


def _firings(done: Replay) -> dict[str, int]:
    counts: dict[str, int] = {}
    for event in done.events:
        if event.what == "firing" and event.rule is not None:
            counts[event.rule] = counts.get(event.rule, 0) + 1
    return counts
