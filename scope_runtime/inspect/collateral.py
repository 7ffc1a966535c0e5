"""What a rule does to texts that it should leave alone: perplexity, and what other features become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import UsageError
from scope_runtime.inspect.statistics import Floats
from scope_runtime.inspect.texts import prompts_and_answers
from scope_runtime.recording import RecordedText
from scope_runtime.replay import replay
from scope_runtime.sae.active import Active

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.llama.context import Context
    from scope_runtime.program import Program
    from scope_runtime.runtime import Runtime
    from scope_runtime.sae import SaeLayers


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text whose perplexity is measured from ``n_prompt`` on."""

    tokens: tuple[int, ...]
    n_prompt: int


def scored(context: Context, texts: Sequence[Text]) -> tuple[ScoredText, ...]:
    """Texts as tokens: of a conversation that ends with an answer only the answer is scored.

    Raises:
        UsageError: there is nothing to score in one.
    """
    out = []
    for text, (prompt, answer) in zip(texts, prompts_and_answers(context, texts), strict=True):
        n_prompt = len(prompt) if text.messages else 1
        if len(prompt) + len(answer) <= n_prompt:
            raise UsageError(
                "a collateral text has no answer to measure",
                found=repr((text.text or str(text.messages))[:60]),
                expected="text, or a conversation that ends with the assistant's answer",
            )
        out.append(ScoredText((*prompt, *answer), n_prompt))
    return tuple(out)


def nll(runtime: Runtime, texts: Sequence[ScoredText]) -> Floats:
    """Mean negative log-likelihood of each text under the policy in force, in nats a token."""
    out = []
    for text in texts:
        logits = runtime.logits(text.tokens, n_prompt=text.n_prompt)
        rows = logits[text.n_prompt - 1 : -1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        said = rows[np.arange(len(rows)), text.tokens[text.n_prompt :]]
        out.append(float(np.mean(np.log(np.exp(rows).sum(axis=1)) - said)))
    return np.array(out)


@dataclass(slots=True)
class FeatureShift:
    """Recorded texts and what every feature of some layers is in them, unsteered.

    Attributes:
        saes: whole layers; None: only the dose is measured.
        texts: with the layers that the rule acts on.
        own: features that the rule itself acts on, left out of the shift.
    """

    saes: SaeLayers | None
    texts: Sequence[RecordedText]
    own: frozenset[tuple[int, int]]
    _before: dict[tuple[int, int], Active] = field(default_factory=dict)

    def under(self, program: Program, rule: str) -> tuple[float, float | None]:
        """Mean dose of a rule over the tokens of its phase, and how much other features shift there.

        The shift is the sum over tokens and features of |Δz|, over the sum of z before; None without
        whole layers that the program acts on.
        """
        doses: list[Floats] = []
        changed = total = 0.0
        for number, text in enumerate(self.texts):
            n_prompt = text.n_prompt or 1
            done = replay(program, text, n_prompt)
            did = done.rule(rule)
            if did is not None:
                doses.append(np.nan_to_num(did.dose[n_prompt - 1 :].astype(np.float64)))
            for layer, after in done.residuals.items():
                if self.saes is None or layer not in self.saes.layers:
                    continue
                one, two = self._dense(number, layer, text, n_prompt), self._encoded(layer, after)
                difference, size = _difference(
                    one, two, done.n_tokens, n_prompt, [id for at, id in self.own if at == layer]
                )
                changed, total = changed + difference, total + size
        dose = float(np.concatenate(doses).mean()) if doses else 0.0
        return dose, changed / total if total else None

    def _dense(self, number: int, layer: int, text: RecordedText, n_prompt: int) -> Active:
        if (number, layer) not in self._before:
            self._before[number, layer] = self._encoded(layer, text.residual(layer))
        return self._before[number, layer]

    def _encoded(self, layer: int, h: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Active:
        assert self.saes is not None
        return self.saes.layer(layer).encode(h)


def _difference(
    one: Active, two: Active, n_tokens: int, n_prompt: int, own: Sequence[int]
) -> tuple[float, float]:
    """Sums of |Δz| and of z over tokens of the answer and features that are not the rule's own."""
    ids = np.union1d(one.ids, two.ids)
    ids = ids[~np.isin(ids, own)].tolist()
    answer = slice(n_prompt - 1, n_tokens)
    a, b = (np.maximum(active.of(ids)[answer], 0).astype(np.float64) for active in (one, two))
    return float(np.abs(a - b).sum()), float(a.sum())
