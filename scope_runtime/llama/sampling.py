"""What a caller may ask of the draw, checked before llama.cpp sees it."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scope_runtime.errors import UsageError
from scope_runtime.types import MAX_SEED

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn and when the answer ends. Temperature 0 is greedy; ``seed`` None draws a random one.

    Attributes:
        frequency_penalty, presence_penalty: taken from the logits of what was answered already, per time and once.
        logit_bias: added to the logits of these token ids.
        stop: texts that end the answer; they are not part of it.
        grammar: GBNF that the answer must follow; empty: none.
        top_logprobs: None leaves log probabilities out, else the most likely tokens that are listed beside the drawn.

    Raises:
        UsageError: a value that llama.cpp would take for another.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    seed: int | None = None
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    grammar: str = ""
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 0, 2**31 - 1),
            ("temperature", 0.0, 1e6),
            ("seed", 0, MAX_SEED),
            ("top_k", 0, 2**31 - 1),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
            ("top_logprobs", 0, MAX_TOP_LOGPROBS),
        ):
            value = getattr(self, name)
            unset = value is None and name in ("seed", "top_logprobs")
            if not unset and not low <= value <= high:
                raise UsageError(
                    f"{name} is out of range", found=str(value), expected=f"{low} to {high}"
                )
        if len(self.stop) > MAX_STOPS or not all(1 <= len(s) <= MAX_STOP_CHARS for s in self.stop):
            raise UsageError(
                "stop is out of range",
                found=f"{len(self.stop)} texts of {sorted(map(len, self.stop))} characters",
                expected=f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters",
            )
        if not all(math.isfinite(bias) for bias in self.logit_bias.values()):
            raise UsageError("logit_bias is out of range", expected="finite numbers")

    def settled(self) -> Sampling:
        """With a seed that can be put on record, where one is drawn with."""
        if self.seed is not None or self.temperature <= 0:
            return self
        return replace(self, seed=secrets.randbelow(MAX_SEED + 1))

    def record(self) -> dict[str, Any]:
        """For the request's record: the numbers. Texts (stop, grammar) are content, so only how many, and a digest."""
        always = ("max_tokens", "temperature", "seed", "top_k", "top_p")
        out = {name: getattr(self, name) for name in always}
        for name in ("min_p", "frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                out[name] = getattr(self, name)
        if self.logit_bias:
            out["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if self.stop:
            out["n_stop"] = len(self.stop)
        if self.grammar:
            out["grammar"] = f"sha256:{hashlib.sha256(self.grammar.encode()).hexdigest()}"
        return out
