"""Steering in plain PyTorch: forward hooks with the runtime's formulas, for search and evaluation.

Written apart from the runtime's own code, so that the two can be compared. `h` is the residual after
a block, `z` a feature's activation after the exact top-k gate over the whole layer, `d` its decoder
direction as stored. All rules at one block measure the same incoming `h`; their deltas are added once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from corpus import Example
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, Qwen3ForCausalLM

# `first` is the one column that chooses the first answer token: in a policy,
# `when: {positions: {from: 0, to: 0, of: answer}}`.
Phase = Literal["generation", "first", "all"]


def load_model(folder: Path):
    """The model in F32, ready for inference, and its tokenizer."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Sae:
    """One layer of a Qwen-Scope set: `topk(h W_encᵀ + b_enc, k)`, no `b_dec` subtraction, no ReLU."""

    W_enc: Tensor  # (d_sae, d_model)
    W_dec: Tensor  # (d_model, d_sae); a feature's direction is a column
    b_enc: Tensor  # (d_sae,)
    b_dec: Tensor  # (d_model,)
    k: int

    def encode(self, h: Tensor) -> Tensor:
        """Activations (..., d_sae): zero but for the k largest pre-activations."""
        values, ids = (h @ self.W_enc.T + self.b_enc).topk(self.k, dim=-1)
        return torch.zeros(*h.shape[:-1], len(self.b_enc)).scatter_(-1, ids, values)

    def decode(self, z: Tensor) -> Tensor:
        """Reconstruction (..., d_model)."""
        return z @ self.W_dec.T + self.b_dec


def load_sae(folder: Path, layer: int) -> Sae:
    k = json.loads((folder / "config.json").read_text())["k"]
    return Sae(**torch.load(folder / f"layer{layer}.sae.pt", weights_only=True), k=k)


def load_saes(folder: Path) -> list[Sae]:
    n_layers = json.loads((folder / "config.json").read_text())["num_layers"]
    return [load_sae(folder, n) for n in range(n_layers)]


@dataclass(frozen=True, slots=True)
class Scale:
    """Δh = Σ (factor − 1)·z·d over `ids`; muting is factor 0."""

    layer: int
    sae: Sae
    ids: tuple[int, ...]
    factor: float = 0.0
    phase: Phase = "all"

    def delta(self, h: Tensor) -> Tensor:
        ids = list(self.ids)
        return (self.factor - 1.0) * (self.sae.encode(h)[..., ids] @ self.sae.W_dec[:, ids].T)


@dataclass(frozen=True, slots=True)
class Amplify:
    """Δh = alpha·‖h‖·d/‖d‖ (unit `residual`) or alpha·d (unit `absolute`, a control vector)."""

    layer: int
    direction: Tensor  # (d_model,)
    alpha: float
    unit: Literal["residual", "absolute"] = "residual"
    phase: Phase = "generation"

    def delta(self, h: Tensor) -> Tensor:
        if self.unit == "absolute":
            return (self.alpha * self.direction).expand_as(h)
        return self.alpha * h.norm(dim=-1, keepdim=True) * self.direction / self.direction.norm()


Rule = Scale | Amplify


class Steering:
    """Rules hooked into a model for the length of a `with` block; also measures the dose.

    Before each forward, `columns` must hold masks (batch, n_tokens) of the columns of the phases
    `generation` and `first`; `counted`, if given, the columns whose dose is to be recorded.
    """

    def __init__(self, model: Qwen3ForCausalLM, rules: Iterable[Rule]) -> None:
        self.blocks = model.model.layers
        self.rules = list(rules)
        self.columns: dict[Phase, Tensor] = {}
        self.counted: Tensor | None = None
        self.doses: dict[int, list[Tensor]] = {}

    def __enter__(self) -> Steering:
        layers = sorted({rule.layer for rule in self.rules})
        self.handles = [self.blocks[n].register_forward_hook(self._hook(n)) for n in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, layer: int):
        rules = [rule for rule in self.rules if rule.layer == layer]

        def hook(_module, _args, h: Tensor) -> Tensor:
            delta = torch.zeros_like(h)
            for rule in rules:
                change = rule.delta(h)
                if rule.phase != "all":
                    change = change * self.columns[rule.phase][..., None]
                delta += change
            if self.counted is not None:
                dose = delta.norm(dim=-1) / h.norm(dim=-1)
                self.doses.setdefault(layer, []).append(dose[self.counted])
            return h + delta

        return hook

    def mean_dose(self) -> dict[int, float]:
        """Mean ‖Δh‖/‖h‖ over the counted columns, per layer."""
        return {n: torch.cat(d).mean().item() for n, d in self.doses.items()}


@torch.no_grad()
def generate(
    model,
    tokenizer,
    examples: Sequence[Example],
    rules: Iterable[Rule] = (),
    max_tokens: int = 90,
    batch: int = 60,
    temperature: float = 0.0,
) -> list[str]:
    """Answers to the examples' prompts: greedy, or sampled where `temperature` is above 0."""
    answers: list[str] = [""] * len(examples)
    prompts = [tokenizer(e.prompt())["input_ids"] for e in examples]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(by_length), batch):
        rows = by_length[start : start + batch]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        made = _continue(model, tokenizer, ids, mask, rules, max_tokens, temperature, generator)
        for i, row in zip(rows, made.tolist(), strict=True):
            answer = tokenizer.decode(row).split("<|im_end|>")[0]
            answers[i] = answer.replace("<|endoftext|>", "").strip()
    return answers


def _continue(
    model,
    tokenizer,
    ids: Tensor,
    mask: Tensor,
    rules,
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    cache, made, width = DynamicCache(config=model.config), [], ids.shape[1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    done = torch.zeros(len(ids), dtype=torch.bool)
    with Steering(model, rules) as steering:
        for _ in range(max_tokens):
            # The column before the first answer token chooses that token: it is generation already.
            at = torch.arange(ids.shape[1])[None] + (width if made else 0)
            steering.columns = {"generation": at >= width - 1, "first": at == width - 1}
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if temperature > 0:
                shares = (logits / temperature).softmax(-1)
                ids = torch.multinomial(shares, 1, generator=generator)
            else:
                ids = logits.argmax(-1, keepdim=True)
            ids[done] = tokenizer.eos_token_id
            made.append(ids)
            done |= ids[:, 0] == tokenizer.eos_token_id
            if done.all():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return torch.cat(made, dim=1)


@dataclass(frozen=True, slots=True)
class Texts:
    """Whole texts (prompt, answer, end of turn) as right-padded ids.

    `ids` and `valid` are (n_texts, n_tokens); `n_prompt` is (n_texts,).
    """

    ids: Tensor
    valid: Tensor
    n_prompt: Tensor

    def generation(self) -> Tensor:
        """Columns of the generation phase: position ≥ n_prompt − 1, padding left out."""
        at = torch.arange(self.ids.shape[1])[None]
        return (at >= self.n_prompt[:, None] - 1) & self.valid

    def first(self) -> Tensor:
        """The one column per text that chooses the first answer token."""
        return torch.arange(self.ids.shape[1])[None] == self.n_prompt[:, None] - 1


def tokenize(tokenizer, examples: Sequence[Example]) -> Texts:
    rows = [torch.tensor(tokenizer(e.text())["input_ids"]) for e in examples]
    n_prompt = torch.tensor([len(tokenizer(e.prompt())["input_ids"]) for e in examples])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return Texts(ids, torch.arange(ids.shape[1])[None] < lengths[:, None], n_prompt)


def logits(
    model, texts: Texts, rules: Iterable[Rule] = (), steering: Steering | None = None
) -> Tensor:
    """Steered logits (n_texts, n_tokens, n_vocab) on given texts."""
    with steering or Steering(model, rules) as steering:
        steering.columns = {"generation": texts.generation(), "first": texts.first()}
        return model(input_ids=texts.ids, use_cache=False).logits


@torch.no_grad()
def residuals(model, texts: Texts, layers: Sequence[int], batch: int = 50) -> dict[int, Tensor]:
    """Residuals (n_texts, n_tokens, d_model) after the given blocks, as forward hooks see them."""
    seen: dict[int, list[Tensor]] = {n: [] for n in layers}
    handles = [
        model.model.layers[n].register_forward_hook(lambda _m, _a, out, n=n: seen[n].append(out))
        for n in layers
    ]
    for start in range(0, len(texts.ids), batch):
        model.model(input_ids=texts.ids[start : start + batch], use_cache=False)
    for handle in handles:
        handle.remove()
    return {n: torch.cat(parts) for n, parts in seen.items()}


@torch.no_grad()
def answer_nll(model, texts: Texts, rules: Iterable[Rule] = (), batch: int = 50) -> float:
    """Mean negative log-likelihood of the answers' tokens (end of turn included), in nats."""
    total, count = 0.0, 0
    for start in range(0, len(texts.ids), batch):
        part = Texts(
            texts.ids[start : start + batch],
            texts.valid[start : start + batch],
            texts.n_prompt[start : start + batch],
        )
        log_p = logits(model, part, rules)[:, :-1].log_softmax(-1)
        picked = log_p.gather(-1, part.ids[:, 1:, None])[..., 0]
        # A column predicts the next token: generation columns but the last two (end of turn, newline).
        predicts = (
            part.generation()[:, :-1] & part.valid[:, 1:] & (part.ids[:, 1:] != _newline(part))
        )
        total -= picked[predicts].sum().item()
        count += int(predicts.sum())
    return total / count


def _newline(texts: Texts) -> int:
    """The token after the end of turn, which is not part of the answer."""
    last = texts.valid[0].sum() - 1
    return int(texts.ids[0, last])
