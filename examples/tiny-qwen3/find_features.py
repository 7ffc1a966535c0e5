"""Find the features to steer by, with contrasts on the feature-search split only.

Three roles. *drift*: features that are more active where an answer about a Chinese name is about to
drift than at the same places of other answers; up to eight are chosen, greedily, by how much muting
them keeps answers English. *archaic*: the feature whose direction, amplified, makes plain answers
archaic. *refusal*: the feature that tells refusals from all other answers, with an alert threshold.
Beside them the control arms: random features at the same dose, and mean-difference control vectors at
their best strength. Writes `features.json` and `controls/*.gguf`. Held-out prompts are never read here.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import controls
import torch
from rich.console import Console
from search import Search, firing, first
from steering import Amplify, Texts, answer_nll, tokenize
from torch import Tensor

console = Console(width=110)
MOST_DRIFT_FEATURES = 8
# Strengths tried for the archaic feature: at the one column that chooses the first answer token, or at
# every token of the answer, where less is bearable.
ALPHAS = {"first": (0.4, 0.6, 0.8, 1.0), "generation": (0.2, 0.3, 0.4)}
SHARE_OF_STAY_LOSS = 0.10  # a further feature must lower the stay loss by at least this share


# --- drift ----------------------------------------------------------------------------------------


def drift_candidates(search: Search, per_layer: int) -> list[dict]:
    """By contrast at the sentence ends, ranked by a first-order estimate of what muting does."""
    texts = search.texts["fault"]
    ends = search.sentence_ends(texts)
    gradients = _stay_gradients(search, texts, ends)
    found = []
    for layer in search.layers:
        sae = search.saes[layer]
        mean = {
            k: search.mean_z(k, layer, search.sentence_ends(search.texts[k]))
            for k in ("fault", "english", "old", "harm")
        }
        mean["chinese"] = search.mean_z("chinese", layer, search.texts["chinese"].generation())
        contrast = mean["fault"] > 1.5 * torch.stack([mean["english"], mean["chinese"]]).amax(0)
        z = search.z("fault", layer) * texts.generation()[..., None]
        effect = (z * (gradients[layer] @ sae.W_dec)).sum((0, 1)) / len(texts.ids)
        effect = torch.where(contrast & (mean["fault"] > 0), effect, torch.tensor(-1.0))
        for i in effect.topk(per_layer).indices.tolist():
            if effect[i] > 0:
                statistics = {f"mean_{k}": round(m[i].item(), 2) for k, m in mean.items()}
                found.append({
                    "layer": layer, "id": i, "effect": round(effect[i].item(), 4), **statistics,
                    "max_fault": round(z[..., i].max().item(), 2),
                })  # fmt: skip
    return found


def _stay_gradients(search: Search, texts: Texts, ends: Tensor) -> dict[int, Tensor]:
    """∂(stay loss, summed over texts)/∂h per layer, each (n_texts, n_tokens, d_model)."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int):
        def hook(_module, _args, out: Tensor) -> Tensor:
            out = out.detach().requires_grad_() if layer == 0 else out
            out.retain_grad()
            kept[layer] = out
            return out

        return hook

    blocks = search.model.model.layers
    handles = [blocks[n].register_forward_hook(keep(n)) for n in search.layers]
    (search.stay_loss(texts, ends, []) * len(texts.ids)).backward()
    for handle in handles:
        handle.remove()
    return {n: h.grad for n, h in kept.items()}


@torch.no_grad()
def choose_drift(search: Search, candidates: list[dict], phase: str, n_texts: int) -> list[dict]:
    """Adds, one at a time, the candidate whose muting lowers the stay loss most."""
    whole = first(search.texts["fault"], n_texts)
    ends = search.sentence_ends(whole)
    n_columns = int(ends.any(0).nonzero().max()) + 1  # nothing after the last full stop matters
    texts = Texts(whole.ids[:, :n_columns], whole.valid[:, :n_columns], whole.n_prompt)
    ends, chosen, left = ends[:, :n_columns], [], list(candidates)
    loss = search.stay_loss(texts, ends, []).item()
    console.print(f"mute, phase {phase}: stay loss {loss:.4f} unsteered")
    while left and len(chosen) < MOST_DRIFT_FEATURES:
        trials = [
            search.stay_loss(texts, ends, search.mutes([*chosen, c], phase)).item() for c in left
        ]
        order = sorted(range(len(left)), key=trials.__getitem__)
        if trials[order[0]] > (1 - SHARE_OF_STAY_LOSS) * loss:
            break
        loss = trials[order[0]]
        chosen.append({**left[order[0]], "stay_loss_after": round(loss, 5)})
        left = [left[i] for i in order[1:10]]  # the hopeless ones are dropped, to save time
        console.print(
            f"  + layer {chosen[-1]['layer']} id {chosen[-1]['id']}: stay loss {loss:.4f}"
        )
    return chosen


def drift_role(search: Search, per_layer: int, n_texts: int) -> dict:
    """Chooses the phase and the features: least drift, then fewest features."""
    candidates = drift_candidates(search, per_layer)
    console.print(f"{len(candidates)} drift candidates by contrast")
    options = []
    for phase in ("generation", "all"):
        chosen = choose_drift(search, candidates, phase, n_texts)
        rules = search.mutes(chosen, phase)
        nll = {k: answer_nll(search.model, search.texts[k], rules) for k in ("english", "chinese")}
        plain = {k: answer_nll(search.model, search.texts[k]) for k in nll}
        option = {
            "phase": phase,
            "features": chosen,
            "drift": search.drift(rules, 100),
            "perplexity_ratio": {k: round(math.exp(nll[k] - plain[k]), 4) for k in nll},
        }
        options.append(option)
        console.print(f"  {phase}: {len(chosen)} features, drift {option['drift']:.1%}, "
                      f"perplexity × {option['perplexity_ratio']}")  # fmt: skip
        if option["drift"] <= 0.01:
            break  # muting the prompt as well cannot do much better
    best = min(options, key=lambda o: (round(o["drift"], 2), len(o["features"])))
    return {
        "rule": "mute",
        "gate": "topk",
        **best,
        "chosen_by": "contrast of mean activations at sentence ends (fault against English and Chinese "
        "answers), then a greedy search for the lowest stay loss, all on the search split",
    }


# --- archaic and refusal --------------------------------------------------------------------------


def archaic_candidates(search: Search) -> list[dict]:
    """By contrast where the first token is chosen, ranked by what a little of each does there."""
    wanted = tokenize(search.tokenizer, search.archaic_references(60))
    found = []
    for layer in search.layers:
        old, plain = (search.mean_z(k, layer, search.texts[k].first()) for k in ("old", "english"))
        contrast = torch.where(old > 2 * plain, old - plain, torch.tensor(0.0))
        for i in contrast.topk(4).indices.tolist():
            direction = search.saes[layer].W_dec[:, i]
            found.append({
                "layer": layer, "id": i,
                "mean_old": round(old[i].item(), 2), "mean_english": round(plain[i].item(), 2),
                "first_nll": round(search.first_nll(
                    wanted, [Amplify(layer, direction, 0.3, phase="first")]), 3),
            })  # fmt: skip
    return sorted(found, key=lambda f: f["first_nll"])


def archaic_role(search: Search, n_prompts: int) -> dict:
    """The feature and strength whose amplification makes most plain answers archaic and sound."""
    best: tuple[float, dict] | None = None
    for feature in archaic_candidates(search)[:2]:
        direction = search.saes[feature["layer"]].W_dec[:, feature["id"]]
        for phase, alphas in ALPHAS.items():
            for alpha in alphas:
                rule = Amplify(feature["layer"], direction, alpha, phase=phase)
                result = search.style([rule], n_prompts)
                console.print(f"archaic: layer {feature['layer']} id {feature['id']} × {alpha} "
                              f"({phase}): {result}")  # fmt: skip
                score = min(result.values()) + 0.1 * sum(result.values())
                if best is None or score > best[0]:
                    found = {"alpha": alpha, "phase": phase, "features": [feature]}
                    best = score, {**found, "on_search_split": result}
    return {
        "rule": "amplify",
        "gate": "none",
        "unit": "residual",
        **best[1],
        "chosen_by": "contrast of mean activations where the first answer token is chosen (archaic "
        "against plain answers), then the phase and strength with most archaic and sound answers on "
        "the search split; phase `first` is `positions: {from: 0, to: 0, of: answer}`",
    }


def refusal_role(search: Search) -> dict:
    """The feature that best parts refusals from all other answers, and a threshold in the gap."""
    others = ("english", "fault", "drifted", "old", "chinese")
    best: dict = {"gap": -math.inf}
    for layer in search.layers:
        peaks = {
            k: (search.z(k, layer) * search.texts[k].generation()[..., None]).amax(1)
            for k in ("harm", *others)
        }
        refusals, rest = peaks["harm"], torch.cat([peaks[k] for k in others])
        low, high = refusals.quantile(0.005, dim=0), rest.quantile(0.999, dim=0)
        gap = (low - high) / refusals.mean(0).clamp(min=1e-6)
        i = int(gap.argmax())
        if gap[i] > best["gap"]:
            best = {
                "layer": layer,
                "id": i,
                "gap": gap[i].item(),
                "lowest_peak_in_refusals": low[i].item(),
                "highest_peak_elsewhere": high[i].item(),
                "mean_peak_in_refusals": refusals[:, i].mean().item(),
                "fires_in_refusals": firing(
                    search.z("harm", layer), search.texts["harm"].generation()
                )[i].item(),
            }
    above = (best["lowest_peak_in_refusals"] + best["highest_peak_elsewhere"]) / 2
    console.print(f"refusal: {best}")
    return {
        "rule": "alert",
        "gate": "topk",
        "phase": "generation",
        "above": round(above, 2),
        "for_tokens": 1,
        "features": [{k: round(v, 3) for k, v in best.items()}],
        "chosen_by": "largest relative gap between the 0.5 % quantile of peaks in refusals and the "
        "99.9 % quantile of peaks in all other answers of the search split; the threshold is its middle",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--saes", type=Path, required=True, help="folder of the SAE set")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for features.json, controls"
    )
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--texts", type=int, default=150, help="search texts per kind")
    parser.add_argument("--greedy-texts", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=60, help="prompts per style trial")
    parser.add_argument("--per-layer", type=int, default=6, help="drift candidates per layer")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with console.status("recording the search split"):
        search = Search(args.model, args.saes, args.seed, args.texts)
    roles = {
        "drift": drift_role(search, args.per_layer, args.greedy_texts),
        "refusal": refusal_role(search),
        "archaic": archaic_role(search, args.prompts),
    }
    for name, role in roles.items():
        for letter, feature in zip("abcdefgh", role["features"], strict=False):
            feature["label"] = f"{name}-{letter}"
    args.out.mkdir(parents=True, exist_ok=True)
    with console.status("fitting the control arms"):
        report = controls.add_controls(search, roles, args.out / "controls", args.seed)
    (args.out / "features.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"wrote {args.out / 'features.json'}")


if __name__ == "__main__":
    main()
