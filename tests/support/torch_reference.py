"""What steering must do, said once more in PyTorch: forward hooks on a Transformers model.

Written from the definitions in docs/how-it-works.md, not from the runtime, and sharing no code with
it. Plain and slow on purpose: one rule, one formula at a time, the hook's arithmetic in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EMBEDDING = -1

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gate:
    """``kind``: none, relu, threshold (JumpReLU at ``threshold``) or topk.

    For topk, ``encoder`` (d_sae, n_embd) and ``bias`` (d_sae) are the whole layer's.
    """

    kind: str
    threshold: float = 0.0
    k: int = 0
    encoder: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, eq=False)
class Latent:
    """One feature: z = gate(w·h + b) at ``layer``, direction d.

    ``id`` is its number in the SAE (its row in the whole encoder), ``max`` its calibrated maximum.
    """

    layer: int
    id: int
    w: Array
    b: float
    d: Array
    gate: Gate
    max: float | None = None


@dataclass(frozen=True, eq=False)
class Vector:
    """A bare direction at one layer."""

    layer: int
    d: Array


@dataclass(frozen=True, eq=False)
class Condition:
    """True while a watched value is above or below a bound; see `firing`.

    ``latch``: once true, true for every later token (an alert that switches a rule on).
    ``phase``: the alert's own; outside it, tokens do not count.
    """

    latents: tuple[Latent, ...]
    above: float | None = None
    below: float | None = None
    hysteresis: float = 0.0
    for_tokens: int = 1
    watch: str = "max"
    latch: bool = False
    phase: str | None = None

    @property
    def layer(self) -> int:
        return max(latent.layer for latent in self.latents)


@dataclass(frozen=True, eq=False)
class Rule:
    """One intervention. Which fields count follows from ``op``, as in a policy file."""

    op: str
    targets: tuple[Latent | Vector, ...]
    alpha: float = 0.0
    unit: str = "absolute"
    factor: float = 0.0
    min: float | None = None
    max: float | None = None
    mode: str = "enforce"
    phase: str | None = None
    positions: tuple[int | None, int | None] | None = None
    positions_of: str = "sequence"
    condition: Condition | None = None


@dataclass
class Steered:
    """What a run gave.

    Attributes:
        logits: (n_tokens, n_vocab).
        residuals: incoming h by hook point, (n_tokens, n_embd), before any change.
        activations: z by id of latent, (n_tokens,), of every latent that a rule or condition named.
        doses: ‖Δh‖ / ‖h‖ by hook point, (n_tokens,), after the limit.
    """

    logits: Array
    residuals: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    activations: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    doses: dict[int, NDArray[np.float64]] = field(default_factory=dict)


def run(
    model: Any,
    tokens: Sequence[int],
    rules: Sequence[Rule] = (),
    *,
    n_prompt: int | None = None,
    dose_max: float | None = None,
) -> Steered:
    """One forward pass over a whole sequence under ``rules``.

    ``n_prompt`` tokens are the prompt (default: all); the column of its last token is the first of
    `generation`.
    ``dose_max`` is the limit per hook point with ``on_excess: clamp``.
    """
    steering = _Steering(tuple(rules), n_prompt or len(tokens), dose_max)
    with _hooked(model, steering), torch.no_grad():
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits
    steered = steering.steered
    steered.logits = logits[0].float().numpy()
    return steered


def activation(latent: Latent, h: NDArray[np.float64]) -> NDArray[np.float64]:
    """z at each row of ``h``."""
    pre = h @ _f64(latent.w) + latent.b
    gate = latent.gate
    if gate.kind == "none":
        return pre
    if gate.kind == "relu":
        return np.where(pre > 0, pre, 0.0)
    if gate.kind == "threshold":
        return np.where(pre > gate.threshold, pre, 0.0)
    if gate.kind == "topk":
        assert gate.encoder is not None
        assert gate.bias is not None
        every = h @ _f64(gate.encoder).T + _f64(gate.bias)
        kept = np.argsort(-every, axis=1, kind="stable")[:, : gate.k]
        return np.where((kept == latent.id).any(axis=1), every[:, latent.id], 0.0)
    raise ValueError(gate.kind)


def firing(condition: Condition, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the condition holds at each token of a sequence, given its value at each token.

    NaN: a token that does not count."""
    above = np.inf if condition.above is None else condition.above
    below = -np.inf if condition.below is None else condition.below
    fires, in_a_row, out = False, 0, np.zeros(len(values), dtype=bool)
    for token, value in enumerate(values):
        slack = condition.hysteresis
        stays = value > above or value < below
        if slack > 0:
            stays = value >= above - slack or value <= below + slack
        active = stays if fires else value > above or value < below
        in_a_row = in_a_row + 1 if active else 0
        enough = in_a_row >= max(condition.for_tokens, 1)
        fires = (active or condition.latch) if fires else enough
        out[token] = fires
    return out


class _Steering:
    """The state of one pass: what earlier hook points measured."""

    def __init__(self, rules: tuple[Rule, ...], n_prompt: int, dose_max: float | None) -> None:
        self.rules = rules
        self.n_prompt = n_prompt
        self.dose_max = dose_max
        self.steered = Steered(np.zeros((0, 0), dtype=np.float32))
        self._conditions: dict[int, NDArray[np.bool_]] = {}

    def change(self, layer: int, h: NDArray[np.float64]) -> NDArray[np.float64]:
        """Δh at every token of one hook point; everything is measured on the same incoming h."""
        self.steered.residuals[layer] = h
        self._measure(layer, h)
        total = np.zeros_like(h)
        for rule in self.rules:
            here = [target for target in rule.targets if target.layer == layer]
            if here and rule.mode == "enforce":
                mask = self._in_scope(rule, len(h))
                total += np.where(mask[:, None], self._delta(rule, here, h), 0.0)
        norms, pushes = np.linalg.norm(h, axis=1), np.linalg.norm(total, axis=1)
        if self.dose_max is not None:
            allowed = self.dose_max * norms
            shrink = np.where(pushes > allowed, allowed / np.maximum(pushes, 1e-300), 1.0)
            total, pushes = total * shrink[:, None], pushes * shrink
        self.steered.doses[layer] = pushes / norms
        return total

    def _measure(self, layer: int, h: NDArray[np.float64]) -> None:
        conditions = [rule.condition for rule in self.rules if rule.condition is not None]
        named: list[Latent | Vector] = [t for rule in self.rules for t in rule.targets]
        for latent in named + [x for condition in conditions for x in condition.latents]:
            if isinstance(latent, Latent) and latent.layer == layer:
                self.steered.activations[id(latent)] = activation(latent, h)
        for condition in conditions:
            if condition.layer == layer:
                zs = np.stack([self.steered.activations[id(x)] for x in condition.latents])
                values = zs.sum(axis=0) if condition.watch == "sum" else zs.max(axis=0)
                values = np.where(self._in_phase(condition.phase, len(h)), values, np.nan)
                self._conditions[id(condition)] = firing(condition, values)

    def _in_phase(self, phase: str | None, n_tokens: int) -> NDArray[np.bool_]:
        answer = np.arange(n_tokens) >= self.n_prompt - 1
        return {None: np.ones(n_tokens, dtype=bool), "generation": answer, "prompt": ~answer}[phase]

    def _in_scope(self, rule: Rule, n_tokens: int) -> NDArray[np.bool_]:
        position = np.arange(n_tokens)
        first_answer = self.n_prompt - 1
        mask = self._in_phase(rule.phase, n_tokens)
        if rule.positions is not None:
            counted = position - first_answer if rule.positions_of == "answer" else position
            first, last = rule.positions
            if first is not None:
                mask &= counted >= first
            if last is not None:
                mask &= counted <= last
        if rule.condition is not None:
            mask &= self._conditions[id(rule.condition)]
        return mask

    def _delta(
        self, rule: Rule, targets: Sequence[Latent | Vector], h: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if rule.op == "ablate":
            return -_projection(h, np.stack([_f64(target.d) for target in targets]))
        total = np.zeros_like(h)
        for target in targets:
            d = _f64(target.d)
            if rule.op == "amplify":
                total += self._push(rule, target, h)[:, None] * d
                continue
            assert isinstance(target, Latent)
            z = self.steered.activations[id(target)]
            if rule.op == "mute":
                amount = -z
            elif rule.op == "scale":
                amount = (rule.factor - 1) * z
            elif rule.op == "clamp":
                amount = np.clip(z, rule.min, rule.max) - z
            else:
                raise ValueError(rule.op)
            total += amount[:, None] * d
        return total

    @staticmethod
    def _push(rule: Rule, target: Latent | Vector, h: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of d an amplify rule adds at each token."""
        if rule.unit == "absolute":
            return np.full(len(h), rule.alpha)
        if rule.unit == "residual":
            norms: NDArray[np.float64] = np.linalg.norm(h, axis=1)
            return rule.alpha * norms / float(np.linalg.norm(_f64(target.d)))
        if rule.unit == "max":
            assert isinstance(target, Latent)
            assert target.max is not None
            return np.full(len(h), rule.alpha * target.max)
        raise ValueError(rule.unit)


def _projection(h: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """h projected on the span of the rows of ``directions``, which may be dependent."""
    coefficients, *_ = np.linalg.lstsq(directions.T, h.T, rcond=1e-6)
    projected: NDArray[np.float64] = (directions.T @ coefficients).T
    return projected


def _f64(array: Array) -> NDArray[np.float64]:
    return np.asarray(array, dtype=np.float64)


@contextmanager
def _hooked(model: Any, steering: _Steering) -> Iterator[None]:
    """Hooks on the embedding's and on every block's output, for as long as the context lasts."""

    def at(layer: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
            residual: Tensor = output[0] if isinstance(output, tuple) else output
            h = residual[0].double().numpy()
            steered = (residual[0].double() + torch.from_numpy(steering.change(layer, h)))[None]
            result = steered.to(residual.dtype)
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    handles = [model.model.embed_tokens.register_forward_hook(at(EMBEDDING))]
    for layer, block in enumerate(model.model.layers):
        handles.append(block.register_forward_hook(at(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
