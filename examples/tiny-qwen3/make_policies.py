"""From `features.json` and the SAE set to what the policies name: the feature pack, the control arms.

Writes `policies/packs/tiny-qwen3.gguf` (the features of the shipped policies and of the control arms)
and `controls/*.yaml`, the arms that stand beside each policy in the figures. The shipped policies
themselves are written by people: run this, then see that their ids and strengths are those of
`features.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from converters import FeatureRequest, convert_pack

HERE = Path(__file__).parent
PACK = HERE.parent.parent / "policies" / "packs" / "tiny-qwen3.gguf"
CONTROLS = HERE / "controls"
PACK_FROM_CONTROLS = "../../../policies/packs/tiny-qwen3.gguf"


WHEN: dict[str, dict[str, Any]] = {
    "all": {},
    "generation": {"when": {"phase": "generation"}},
    "first": {"when": {"positions": {"from": 0, "to": 0, "of": "answer"}}},
}


def wanted(report: dict[str, Any]) -> dict[tuple[int, int], str]:
    """(layer, id) to label, of every feature that a policy or a control arm uses."""
    out: dict[tuple[int, int], str] = {}
    for part in report["roles"].values():
        for f in part["features"]:
            out[f["layer"], f["id"]] = f["label"]
    for name, part in report["control_arms"].items():
        for f in part["features"]:
            out.setdefault((f["layer"], f["id"]), f"control {name}")
    return out


def make_pack(report: dict[str, Any], saes: Path, model: Path) -> None:
    """The pack, with exact top-k gates where a role measures at the layer."""
    features = [FeatureRequest(layer, id, label) for (layer, id), label in wanted(report).items()]
    exact = sorted(int(n) for n, layer in report["layers"].items() if layer["exact_top_k"])
    PACK.parent.mkdir(parents=True, exist_ok=True)
    convert_pack(saes, features, PACK, exact_gate_layers=exact, model=model)


def arm_policy(name: str, part: dict[str, Any]) -> dict[str, Any]:
    """A control arm of `features.json` as a policy: the role's own rule on random features."""
    features = {
        f"random-{n}": {"pack": PACK_FROM_CONTROLS, "layer": f["layer"], "id": f["id"]}
        for n, f in enumerate(part["features"])
    }
    when = WHEN[part["phase"]]
    if part["rule"] == "amplify":
        rules = [
            {"name": "amplify", "amplify": list(features), "alpha": part["alpha"]}
            | {"unit": part["unit"]}
            | when
        ]
    else:
        rules = [
            {"name": f"scale-{n}", "scale": f"random-{n}", "factor": f["factor"]} | when
            for n, f in enumerate(part["features"])
        ]
    return policy(name, "random features at the same dose", features, rules)


def vector_policy(name: str, vector: dict[str, Any]) -> dict[str, Any]:
    """A mean-difference control vector as a policy: added at every token, prompt included."""
    features = {"difference": {"vector": Path(vector["file"]).name, "layers": [vector["layer"]]}}
    rules = [
        {"name": "add", "amplify": "difference", "alpha": vector["alpha"]}
        | WHEN[vector.get("phase", "all")]
    ]
    return policy(name, "the mean-difference vector at its best strength", features, rules)


def policy(name: str, what: str, features: Any, rules: Any) -> dict[str, Any]:
    """The document around an arm's features and rules."""
    return {
        "apiVersion": "scope/v1",
        "kind": "SteeringPolicy",
        "metadata": {
            "name": name,
            "owner": "examples",
            "description": f"control arm of the example's figures: {what}",
        },
        "spec": {"features": features, "rules": rules},
    }


def make_controls(report: dict[str, Any], folder: Path) -> None:
    """One policy file per control arm, and the vectors they name."""
    CONTROLS.mkdir(exist_ok=True)
    documents = {n: arm_policy(n, part) for n, part in report["control_arms"].items()}
    for name, vector in report["control_vectors"].items():
        documents[f"{name}-vector"] = vector_policy(f"{name}-vector", vector)
        shutil.copyfile(folder / vector["file"], CONTROLS / Path(vector["file"]).name)
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.representer.ignore_aliases = lambda *_: True
    for name, document in documents.items():
        with (CONTROLS / f"{name}.yaml").open("w") as out:
            yaml.dump(document, out)


def main() -> None:
    """Makes pack and control arms from what `find_features.py` found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--features", type=Path, default=HERE, help="folder of features.json")
    parser.add_argument("--saes", type=Path, required=True, help="folder of the whole SAE set")
    parser.add_argument("--model", type=Path, default=HERE / "tiny-qwen3-f16.gguf")
    args = parser.parse_args()
    report = json.loads((args.features / "features.json").read_text())
    make_pack(report, args.saes, args.model)
    make_controls(report, args.features)


if __name__ == "__main__":
    main()
