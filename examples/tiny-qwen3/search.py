"""What finding features works on: the search split's texts, their activations, and where to look.

Held-out prompts are never read here.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import corpus
import torch
from steering import (
    Rule,
    Sae,
    Scale,
    Texts,
    generate,
    load_model,
    load_saes,
    logits,
    residuals,
    tokenize,
)
from torch import Tensor


class Search:
    """The model, its SAEs and the search split's texts with their residuals.

    `examples`, `texts` and `h` are by kind of example; `drifted` holds answers with the fault, all
    others are as they should be. `h[kind][layer]` is (n_texts, n_tokens, d_model).
    """

    def __init__(self, model_folder: Path, sae_folder: Path, seed: int, n: int) -> None:
        self.model, self.tokenizer = load_model(model_folder)
        self.saes: list[Sae] = load_saes(sae_folder)
        self.layers = range(len(self.saes))
        self.examples = {
            kind: corpus.examples(seed, "search", kind, n, with_fault=False)
            for kind in corpus.KINDS
        }
        self.examples["drifted"] = [
            e for e in corpus.examples(seed, "search", "fault", n) if corpus.is_drifted(e.answer)
        ]
        self.texts = {kind: tokenize(self.tokenizer, e) for kind, e in self.examples.items()}
        self.h = {kind: residuals(self.model, t, self.layers) for kind, t in self.texts.items()}
        pieces = self.tokenizer.convert_ids_to_tokens(range(self.model.config.vocab_size))
        self.chinese_tokens = torch.tensor([_starts_chinese(piece) for piece in pieces])

    def z(self, kind: str, layer: int) -> Tensor:
        """Activations (n_texts, n_tokens, d_sae), zero on padding."""
        return self.saes[layer].encode(self.h[kind][layer]) * self.texts[kind].valid[..., None]

    def mean_z(self, kind: str, layer: int, columns: Tensor) -> Tensor:
        """Mean activations (d_sae,) over the given columns of a kind's texts."""
        return self.saes[layer].encode(self.h[kind][layer][columns]).mean(0)

    def sentence_ends(self, texts: Texts) -> Tensor:
        """Mask (n_texts, n_tokens) of the full stops after an answer's first and second sentence."""
        stop = self.tokenizer.convert_tokens_to_ids(".")
        stops = (texts.ids == stop) & texts.generation()
        return stops & (stops.cumsum(1) <= 2)

    def deciding(self, texts: Texts) -> Tensor:
        """Mask of the columns that choose a sentence's first token: where a style is decided."""
        return texts.first() | self.sentence_ends(texts)

    def stay_loss(self, texts: Texts, ends: Tensor, rules: list[Rule]) -> Tensor:
        """Mean −log P(the next token is not Chinese) at the sentence ends of undrifted answers."""
        log_p = logits(self.model, texts, rules)[ends].log_softmax(-1)
        return -log_p[:, ~self.chinese_tokens].logsumexp(-1).mean()

    def archaic_references(self, n: int) -> list[corpus.Example]:
        """Plain questions with archaic answers that nobody asked for."""
        references = []
        for plain in self.examples["english"][:n]:
            about = corpus.Subject(plain.domain, plain.subject, "")
            answer = corpus.write_answer(random.Random(plain.question), about, ["old"] * 3)
            references.append(dataclasses.replace(plain, answer=answer))
        return references

    @torch.no_grad()
    def first_nll(self, texts: Texts, rules: list[Rule]) -> float:
        """Mean negative log-likelihood of the answers' first tokens, in nats."""
        width = int(texts.n_prompt.max())
        prompts = Texts(texts.ids[:, :width], texts.valid[:, :width], texts.n_prompt)
        log_p = logits(self.model, prompts, rules)[prompts.first()].log_softmax(-1)
        return -log_p.gather(-1, texts.ids.gather(1, texts.n_prompt[:, None])).mean().item()

    def drift(self, rules: list[Rule], n: int) -> float:
        """Share of answers to fault questions that drift."""
        answers = generate(self.model, self.tokenizer, self.examples["fault"][:n], rules)
        return sum(map(corpus.is_drifted, answers)) / len(answers)

    def style(self, rules: list[Rule], n: int) -> dict[str, float]:
        """Share of archaic answers to plain questions, and of well-formed ones that stay on topic."""
        prompts = self.examples["english"][:n]
        answers = generate(self.model, self.tokenizer, prompts, rules)
        sound = [
            corpus.is_well_formed_and_on_topic(e.question, a, e.domain)
            for e, a in zip(prompts, answers, strict=True)
        ]
        archaic = sum(map(corpus.is_archaic, answers))
        return {
            "archaic": round(archaic / len(answers), 3),
            "sound": round(sum(sound) / len(sound), 3),
        }

    def mutes(self, features: list[dict], phase: str) -> list[Rule]:
        """One rule per layer that mutes the features of that layer."""
        layers = sorted({f["layer"] for f in features})
        return [
            Scale(n, self.saes[n], tuple(f["id"] for f in features if f["layer"] == n), 0.0, phase)
            for n in layers
        ]


def first(texts: Texts, n: int) -> Texts:
    """The first `n` texts."""
    return Texts(texts.ids[:n], texts.valid[:n], texts.n_prompt[:n])


def firing(z: Tensor, columns: Tensor) -> Tensor:
    """Share of texts (d_sae,) in which each feature fires in the given columns."""
    return ((z > 0) & columns[..., None]).any(1).float().mean(0)


def _starts_chinese(piece: str) -> bool:
    """Whether a byte-level BPE piece begins (after a space, Ġ) with a byte of a Chinese character."""
    return piece == "Ġ" or "ã" <= piece.removeprefix("Ġ")[:1] <= "ï"
