"""Measure the chosen features on held-out prompts, in PyTorch with forward hooks.

Reads `features.json`, the checkpoint and the SAEs; prints a table and writes `figures.json`. With
`--gguf`, the weights of a GGUF file (F16 or quantized, dequantized to F32) take the place of the
checkpoint's: what quantizing the weights does to the figures, apart from llama.cpp's arithmetic.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import controls
import corpus
import gguf
import torch
from export_gguf import gguf_name
from rich.console import Console
from rich.table import Table
from steering import Rule, answer_nll, generate, load_model, load_saes, residuals, tokenize

KEPT = {"fault": 240, "english": 240, "chinese": 240, "harm": 240, "old": 120}  # prompts per kind


def heldout(seed: int) -> dict[str, list[corpus.Example]]:
    """The held-out prompts, each with its answer as it should be (without the fault)."""
    return {
        kind: corpus.examples(seed, "heldout", kind, n, with_fault=False)
        for kind, n in KEPT.items()
    }


def use_weights_of(model, path: Path) -> None:
    """Copies a GGUF file's weights, dequantized, into the model."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors[gguf_name(name)]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            parameter.copy_(torch.tensor(values).reshape(parameter.shape))


def read_direction(folder: Path, vector: dict) -> torch.Tensor:
    """The direction (n_embd,) of a control-vector file."""
    tensors = {t.name: t.data for t in gguf.GGUFReader(folder / vector["file"]).tensors}
    return torch.tensor(tensors[f"direction.{vector['layer']}"])


class Evaluation:
    """The held-out prompts on one set of weights, and the measures over them."""

    def __init__(self, model, tokenizer, prompts: dict[str, list[corpus.Example]]) -> None:
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.references = {kind: tokenize(tokenizer, e) for kind, e in prompts.items()}
        self.unsteered: dict[str, list[str]] = {}
        self.plain_nll = {k: answer_nll(model, t) for k, t in self.references.items()}

    def answers(self, kind: str, rules: Sequence[Rule] = (), temperature: float = 0.0) -> list[str]:
        """Answers to the prompts of a kind; the unsteered greedy ones are generated once."""
        if not rules and temperature == 0 and kind in self.unsteered:
            return self.unsteered[kind]
        prompts = self.prompts[kind]
        made = generate(self.model, self.tokenizer, prompts, rules, temperature=temperature)
        if not rules and temperature == 0:
            self.unsteered[kind] = made
        return made

    def sound(self, kind: str, answers: list[str]) -> float:
        """Share of answers that are well-formed by the grammar and on topic."""
        good = [
            corpus.is_well_formed_and_on_topic(e.question, a, e.domain)
            for e, a in zip(self.prompts[kind], answers, strict=True)
        ]
        return sum(good) / len(good)

    def drift(self, rules: Sequence[Rule]) -> dict[str, float]:
        """What the drift rules (or a control arm) do to fault, English and Chinese prompts."""
        fault = self.answers("fault", rules)
        english, chinese = self.answers("english", rules), self.answers("chinese", rules)
        nll = {k: answer_nll(self.model, self.references[k], rules) for k in ("english", "fault")}
        return {
            "drifted": mean(map(corpus.is_drifted, fault)),
            "fault_sound": self.sound("fault", fault),
            "english_perplexity": math.exp(nll["english"]),
            "english_perplexity_ratio": math.exp(nll["english"] - self.plain_nll["english"]),
            "fault_reference_perplexity_ratio": math.exp(nll["fault"] - self.plain_nll["fault"]),
            "english_sound": self.sound("english", english),
            "chinese_in_chinese": mean(map(corpus.is_chinese, chinese)),
            "chinese_sound": self.sound("chinese", chinese),
        }

    def archaic(self, rules: Sequence[Rule]) -> dict[str, float]:
        """Archaic answers nobody asked for, on English prompts without Chinese names."""
        answers = self.answers("english", rules)
        return {
            "archaic": mean(map(corpus.is_archaic, answers)),
            "sound": self.sound("english", answers),
        }

    def refusal(self, report: dict, saes: list) -> dict[str, float]:
        """How the alert, put to the model's own unsteered answers, tells refusals from the rest."""
        role = report["roles"]["refusal"]
        caught, alarms = [], []
        for kind in self.prompts:
            answers = self.answers(kind)
            texts = [_answered(e, a) for e, a in zip(self.prompts[kind], answers, strict=True)]
            tokens = tokenize(self.tokenizer, texts)
            peak = torch.zeros(len(texts))
            for f in role["features"]:
                h = residuals(self.model, tokens, [f["layer"]])[f["layer"]]
                z = saes[f["layer"]].encode(h)[..., f["id"]] * tokens.generation()
                peak = torch.maximum(peak, z.amax(1))
            for value, answer in zip(peak.tolist(), answers, strict=True):
                fires = value > role["above"]
                (caught if corpus.is_refusal(answer) else alarms).append(fires)
        return {
            "refusals": len(caught),
            "caught": mean(caught),
            "others": len(alarms),
            "false_alarms": mean(alarms),
            "harm_refused": mean(map(corpus.is_refusal, self.answers("harm"))),
        }


def _answered(example: corpus.Example, answer: str) -> corpus.Example:
    return corpus.Example(
        example.kind, example.domain, example.subject, example.system, example.question, answer
    )


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def evaluate(
    evaluation: Evaluation,
    report: dict,
    saes: list,
    folder: Path,
    console: Console,
    with_controls: bool,
) -> dict:
    """All figures: unsteered, policy, and the control arms if asked for."""
    arms = ["drift", "archaic", *(report["control_arms"] if with_controls else ())]
    rules = {name: controls.rules_of(report, saes, name) for name in arms}
    for name, vector in report["control_vectors"].items() if with_controls else ():
        rules[f"{name}-vector"] = controls.vector_rules(vector, read_direction(folder, vector))
    figures: dict = {"refusal": evaluation.refusal(report, saes), "drift": {}, "archaic": {}}
    figures["drift_sampled_at_0.7"] = {
        name: mean(map(corpus.is_drifted, evaluation.answers("fault", arm, temperature=0.7)))
        for name, arm in {"unsteered": [], "drift": rules["drift"]}.items()
    }
    asked = evaluation.answers("old")
    figures["archaic_when_asked"] = mean(map(corpus.is_archaic, asked))
    for name, arm in {"unsteered": [], **rules}.items():
        if not name.startswith("archaic"):
            figures["drift"][name] = evaluation.drift(arm)
            console.print(name, figures["drift"][name])
        if not name.startswith("drift"):
            figures["archaic"][name] = evaluation.archaic(arm)
            console.print(name, figures["archaic"][name])
    return figures


def show(figures: dict, console: Console) -> None:
    for part in ("drift", "archaic"):
        rows = figures[part]
        table = Table("arm", *next(iter(rows.values())), title=part)
        for name, row in rows.items():
            table.add_row(name, *(f"{v:.4f}" for v in row.values()))
        console.print(table)
    console.print("refusal alert", figures["refusal"])
    console.print("drift when sampled at 0.7", figures["drift_sampled_at_0.7"])
    console.print("archaic when asked", figures["archaic_when_asked"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--saes", type=Path, required=True, help="folder of the SAE set")
    parser.add_argument("--features", type=Path, required=True, help="folder of features.json")
    parser.add_argument("--gguf", type=Path, help="take the weights from this file")
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--prompts-out", type=Path, help="file for the held-out prompts")
    parser.add_argument("--no-controls", action="store_true", help="leave out the control arms")
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=200)
    prompts = heldout(args.seed)
    if args.prompts_out:
        args.prompts_out.write_text(
            json.dumps(
                {kind: [e.as_dict() for e in examples] for kind, examples in prompts.items()},
                ensure_ascii=False,
                indent=0,
            )
            + "\n"
        )
    model, tokenizer = load_model(args.model)
    if args.gguf:
        use_weights_of(model, args.gguf)
    report = json.loads((args.features / "features.json").read_text())
    evaluation = Evaluation(model, tokenizer, prompts)
    figures = evaluate(
        evaluation, report, load_saes(args.saes), args.features, console, not args.no_controls
    )
    figures["weights"] = args.gguf.name if args.gguf else "F32 checkpoint"
    show(figures, console)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
