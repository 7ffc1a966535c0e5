"""The short way to a policy: ``Intervention().activate(feature, 0.3).suppress(feature)``."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from scope_runtime.errors import UsageError
from scope_runtime.files import written_whole
from scope_runtime.pack_types import layer_name
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.model import EMBEDDING, Policy

FeatureName = str | tuple[str | os.PathLike[str], int, int]
"""``PACK:LAYER:ID``, or the three as a tuple."""


@dataclass(frozen=True, slots=True)
class _Step:
    pack: str
    layer: int
    id: int
    rule: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Intervention:
    """A policy in the making. Every call gives a new one; this one stays as it is.

        Intervention().activate("packs/m.gguf:20:6159", 0.2).suppress("packs/m.gguf:20:811").write("policy.yaml")

    Attributes:
        name: of the policy.
        phase: ``generation`` leaves prompts alone; ``prompt``; None steers every token.
    """

    name: str = "intervention"
    phase: str | None = None
    _steps: tuple[_Step, ...] = ()

    def activate(
        self, feature: FeatureName, strength: float, *, unit: str = "residual"
    ) -> Intervention:
        """Adds a feature's direction at every token (``amplify``).

        Args:
            feature: ``PACK:LAYER:ID`` or a tuple of them.
            strength: how much, in ``unit``; negative pushes away from it.
            unit: ``residual``: shares of the residual's length, along the direction at length 1; ``absolute``: times
                the direction as stored; ``max``: times the feature's recorded maximum.

        Raises:
            UsageError: the feature is none, or the strength is 0.
        """
        if not strength:
            raise UsageError("a strength of 0 does nothing", found=str(strength))
        return self._with(feature, {"amplify": None, "alpha": strength, "unit": unit})

    def suppress(self, feature: FeatureName, strength: float = 1.0) -> Intervention:
        """Takes away what the feature adds: all of it (``mute``), or a share (``scale``).

        Raises:
            UsageError: the feature is none, or the strength is not above 0 and at most 1.
        """
        if not 0 < strength <= 1:
            raise UsageError(
                "a feature is suppressed by a share of itself",
                found=str(strength),
                expected="above 0, at most 1",
                hint="To push against its direction, activate it with a negative strength",
            )
        if strength == 1:
            return self._with(feature, {"mute": None})
        return self._with(feature, {"scale": None, "factor": round(1 - strength, 12)})

    def during(self, phase: str | None) -> Intervention:
        """The same in one phase: ``generation`` or ``prompt``; None: everywhere."""
        return replace(self, phase=phase)

    def to_yaml(self, folder: str | os.PathLike[str] = ".") -> str:
        """The policy file's text, for a file in ``folder``; checked as every policy is, packs aside.

        Raises:
            PolicyErrors: it is none that the loader takes.
            UsageError: nothing is to be done.
        """
        text = self._text(Path(folder))
        parse_policy(text, file=str(Path(folder, f"{self.name}.yaml")), files=False)
        return text

    def _text(self, folder: Path) -> str:
        if not self._steps:
            raise UsageError("the intervention does nothing", hint="activate or suppress a feature")
        out = io.StringIO()
        writer = YAML()
        writer.width = 100
        writer.indent(mapping=2, sequence=4, offset=2)
        writer.dump(self._tree(folder), out)
        return out.getvalue()

    def write(self, path: str | os.PathLike[str], *, root: str | None = None) -> Policy:
        """Writes the policy, for ``Runtime(policy=path)``, and gives it as the loader sees it.

        Args:
            path: the policy file; packs are named from its folder, which they must lie in or below, or in ``root``.
            root: as Runtime's ``policy_root``.

        Raises:
            PolicyErrors: a pack is not there or lies elsewhere, or the policy is none that the loader takes.
            UsageError: nothing is to be done, or the file cannot be written.
        """
        file = Path(path)
        text = self._text(file.parent)
        policy = parse_policy(text, file=str(file), root=root)
        with written_whole(file, UsageError) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return policy

    def _with(self, feature: FeatureName, rule: Mapping[str, Any]) -> Intervention:
        pack, layer, id = _parsed(feature)
        return replace(self, _steps=(*self._steps, _Step(pack, layer, id, rule)))

    def _tree(self, folder: Path) -> dict[str, Any]:
        features: dict[str, Any] = {}
        rules: dict[str, Any] = {}
        for step in self._steps:
            layer = layer_name(step.layer)
            pack = os.path.relpath(step.pack, folder).replace(os.sep, "/")
            said = {
                "pack": pack,
                "layer": layer if step.layer == EMBEDDING else step.layer,
                "id": step.id,
            }
            name = next((key for key, value in features.items() if value == said), None)
            if name is None:
                name = _free(f"f{layer}-{step.id}", features)
                features[name] = said
            op = next(iter(step.rule))
            rule = {**step.rule, op: name}
            if self.phase is not None:
                rule["when"] = {"phase": self.phase}
            rules[_free(f"{op}-{name}", rules)] = rule
        return {
            "apiVersion": "scope/v1",
            "kind": "SteeringPolicy",
            "metadata": {"name": self.name},
            "spec": {
                "features": features,
                "rules": [{"name": name, **rule} for name, rule in rules.items()],
            },
        }


def _free(name: str, taken: Mapping[str, Any]) -> str:
    several = (f"{name}-{n}" for n in range(2, len(taken) + 3))
    return next(each for each in (name, *several) if each not in taken)


def _parsed(feature: FeatureName) -> tuple[str, int, int]:
    parts = feature.rsplit(":", 2) if isinstance(feature, str) else list(map(str, feature))
    if len(parts) == 3 and parts[0]:
        pack, layer, id = parts
        numbered = layer == "embedding" or (layer.isascii() and layer.isdigit() and len(layer) < 5)
        if numbered and id.isascii() and id.isdigit() and len(id) < 10:
            return pack, EMBEDDING if layer == "embedding" else int(layer), int(id)
    raise UsageError(
        "no name of a feature",
        found=repr(feature),
        expected="PACK:LAYER:ID, such as packs/model.gguf:20:6159, or the three as a tuple",
    )
