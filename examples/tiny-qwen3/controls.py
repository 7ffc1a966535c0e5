"""The arms that stand beside the steered one: what else could explain the effect?

Random features at the same dose, and llama.cpp control vectors from mean differences at their best
strength. Part of `find_features.py`: everything here is fitted on the search split.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from search import first
from steering import Amplify, Rule, Scale, Steering, answer_nll, logits, tokenize
from torch import Tensor

if TYPE_CHECKING:
    from search import Search

# What a policy's rule says for each phase.
WHEN: dict[str, dict] = {
    "all": {},
    "generation": {"phase": "generation"},
    "first": {"positions": {"from": 0, "to": 0, "of": "answer"}},
}
N_RANDOM = 3  # random arms per role
MOST_PERPLEXITY = 1.03  # a drift vector may cost as much English as the target allows the policy


def add_controls(search: Search, roles: dict, folder: Path, seed: int) -> dict:
    """The whole content of features.json: model, SAE set, roles, control arms, control vectors."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    drift, archaic = roles["drift"], roles["archaic"]
    arms = {f"drift-random-{i}": _random_mute(search, drift, rng) for i in range(N_RANDOM)}
    arms |= {f"archaic-random-{i}": _random_amplify(search, archaic, rng) for i in range(N_RANDOM)}
    vectors = {"drift": _drift_vector(search), "archaic": _archaic_vector(search)}
    for name, vector in vectors.items():
        file = folder / f"{name}-mean-difference.gguf"
        write_control_vector(
            file,
            {vector["layer"]: vector.pop("direction").numpy()},
            search.model.config.num_hidden_layers,
        )
        vector["file"] = f"{folder.name}/{file.name}"
    for part in (*roles.values(), *arms.values()):
        part["when"] = WHEN[part["phase"]]
    layers = sorted({f["layer"] for role in roles.values() for f in role["features"]})
    config = search.model.config
    return {
        "model": {
            "architecture": "qwen3",
            "name": "tiny-qwen3",
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
        },
        "sae": {"kind": "topk", "k": search.saes[0].k, "width": len(search.saes[0].b_enc)},
        "split": "search",
        "roles": roles,
        "layers": {
            str(n): {
                "exact_top_k": any(
                    role["gate"] == "topk" and any(f["layer"] == n for f in role["features"])
                    for role in roles.values()
                )
            }
            for n in layers
        },
        "control_arms": arms,
        "control_vectors": vectors,
    }


def rules_of(report: dict, saes: list, role: str) -> list[Rule]:
    """The rules of a role (or of a control arm in the same form) as PyTorch hooks."""
    part = report["roles"].get(role) or report["control_arms"][role]
    if part["rule"] == "amplify":
        return [
            Amplify(
                f["layer"],
                saes[f["layer"]].W_dec[:, f["id"]],
                part["alpha"],
                part["unit"],
                part["phase"],
            )
            for f in part["features"]
        ]
    by_factor: dict[tuple[int, float], list[int]] = {}
    for f in part["features"]:
        by_factor.setdefault((f["layer"], f.get("factor", 0.0)), []).append(f["id"])
    return [
        Scale(layer, saes[layer], tuple(ids), factor, part["phase"])
        for (layer, factor), ids in by_factor.items()
    ]


def vector_rules(vector: dict, direction: Tensor) -> list[Rule]:
    """A control vector as a hook: added at every token, prompt included."""
    return [Amplify(vector["layer"], direction, vector["alpha"], "absolute", "all")]


@torch.no_grad()
def doses(search: Search, rules: list[Rule], phase: str) -> dict[int, float]:
    """Mean ‖Δh‖/‖h‖ per layer on fault texts, over the columns of the phase."""
    texts = search.texts["fault"]
    steering = Steering(search.model, rules)
    steering.counted = texts.valid if phase == "all" else texts.generation()
    logits(search.model, texts, steering=steering)
    return steering.mean_dose()


def _random_mute(search: Search, role: dict, rng: random.Random) -> dict:
    """As many random live features per layer, scaled so that their mean dose is the role's own."""
    own = {(f["layer"], f["id"]) for f in role["features"]}
    by_layer: dict[int, int] = {}
    for layer, _ in own:
        by_layer[layer] = by_layer.get(layer, 0) + 1
    picked: dict[int, tuple[int, ...]] = {}
    for layer, count in sorted(by_layer.items()):
        texts = search.texts["fault"]
        columns = texts.valid if role["phase"] == "all" else texts.generation()
        live = ((search.z("fault", layer) > 0) & columns[..., None]).any(1).float().mean(0) > 0.1
        pool = [i for i in live.nonzero()[:, 0].tolist() if (layer, i) not in own]
        picked[layer] = tuple(rng.sample(pool, count))
    dose = {f["layer"]: 0.0 for f in role["features"]} | doses(
        search, search.mutes(role["features"], role["phase"]), role["phase"]
    )
    features = []
    for layer, ids in picked.items():
        one = doses(
            search, [Scale(layer, search.saes[layer], ids, 0.0, role["phase"])], role["phase"]
        )
        strength = dose[layer] / one[layer]
        features += [{"layer": layer, "id": i, "factor": round(1 - strength, 4)} for i in ids]
    return {
        "rule": "scale",
        "gate": "topk",
        "phase": role["phase"],
        "features": features,
        "dose_of_role": {n: round(d, 4) for n, d in dose.items()},
    }


def _random_amplify(search: Search, role: dict, rng: random.Random) -> dict:
    """Random live features at the role's layers and strength: the dose is the same by construction."""
    features = []
    for feature in role["features"]:
        live = (search.z("english", feature["layer"]) > 0).any(1).float().mean(0) > 0.1
        pool = [i for i in live.nonzero()[:, 0].tolist() if i != feature["id"]]
        features.append({"layer": feature["layer"], "id": rng.choice(pool)})
    return {key: role[key] for key in ("rule", "gate", "unit", "alpha", "phase")} | {
        "features": features
    }


def _mean(search: Search, kind: str, layer: int, columns: Tensor) -> Tensor:
    return search.h[kind][layer][columns].mean(0)


@torch.no_grad()
def _drift_vector(search: Search) -> dict:
    """The best (layer, strength) of the vector from drift-fated to harmless sentence ends."""
    fault, english = search.texts["fault"], search.texts["english"]
    ends, few = search.sentence_ends(fault), first(fault, 50)
    plain = answer_nll(search.model, english)
    trials = []
    for layer in search.layers[1:]:  # llama.cpp's control vectors cannot act on block 0
        direction = _mean(search, "english", layer, search.sentence_ends(english)) - _mean(
            search, "fault", layer, ends
        )
        for alpha in (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
            rule = Amplify(layer, direction, alpha, "absolute", "all")
            loss = search.stay_loss(few, ends[:50], [rule]).item()
            ratio = float(np.exp(answer_nll(search.model, english, [rule]) - plain))
            trials.append((loss, ratio, layer, alpha, direction))
    fine = [t for t in trials if t[1] < MOST_PERPLEXITY] or trials
    _, ratio, layer, alpha, direction = min(fine, key=lambda t: t[0])
    rule = Amplify(layer, direction, alpha, "absolute", "all")
    return {
        "layer": layer,
        "alpha": alpha,
        "direction": direction,
        "perplexity_ratio": round(ratio, 4),
        "drift": search.drift([rule], 60),
        "chosen_by": "lowest stay loss among strengths that raise English perplexity by less than 3 %",
    }


@torch.no_grad()
def _archaic_vector(search: Search) -> dict:
    """The best (layer, strength) of the vector from plain to archaic beginnings of answers."""
    wanted = tokenize(search.tokenizer, search.archaic_references(60))
    trials = []
    for layer in search.layers[1:]:
        old, plain = (_mean(search, k, layer, search.texts[k].first()) for k in ("old", "english"))
        for alpha in (0.25, 0.5, 0.75, 1.0, 1.5):
            rule = Amplify(layer, old - plain, alpha, "absolute", "all")
            trials.append((search.first_nll(wanted, [rule]), layer, alpha, old - plain))
    results = []
    for _, layer, alpha, direction in sorted(trials, key=lambda t: t[0])[:5]:
        result = search.style([Amplify(layer, direction, alpha, "absolute", "all")], 40)
        results.append((min(result.values()), layer, alpha, direction, result))
    _, layer, alpha, direction, result = max(results, key=lambda r: r[0])
    return {
        "layer": layer,
        "alpha": alpha,
        "direction": direction,
        "on_search_split": result,
        "chosen_by": "best minimum of archaic and of sound answers on the search split",
    }


def write_control_vector(path: Path, directions: dict[int, np.ndarray], n_layers: int) -> None:
    """llama.cpp's control-vector file: `direction.N`, (n_embd,) F32, for the output of block N ≥ 1."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "qwen3")
    writer.add_uint32("controlvector.layer_count", n_layers)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
