"""Every kind of intervention at one hook point, as data: what the exactness tests run.

Gates and conditions switch at a value, where a rounding difference would become a difference of a
whole activation. So each bound is put into the widest gap that the values of this prompt leave, and
top-k features are chosen for the width of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.random_pack import TOP_K, RandomPack
from tests.support.torch_reference import EMBEDDING, Condition, Latent, Rule, activation, run

N_TOKENS = 40
N_PROMPT = 28


@dataclass(frozen=True)
class Case:
    """Rules to carry out, and the dose limit if there is one."""

    rules: tuple[Rule, ...]
    dose_max: float | None = None


@dataclass(frozen=True)
class Point:
    """A hook point of a model on a prompt: what the cases there are made of.

    Attributes:
        h: the unsteered residual at the hook point, (n_tokens, n_embd).
        earlier: the same one hook point before; None at the embedding.
    """

    layer: int
    pack: RandomPack
    h: NDArray[np.float64]
    earlier: NDArray[np.float64] | None

    def firing(self, n: int) -> list[Latent]:
        """The n features that act most at this prompt, gate relu."""
        latents = self.pack.latents[self.layer]
        total = [float(activation(x, self.h).sum() * np.linalg.norm(x.d)) for x in latents]
        return [latents[i] for i in np.argsort(total)[::-1][:n]]

    def threshold(self, latent: Latent) -> float:
        return widest_gap(self.h @ latent.w.astype(np.float64) + latent.b)


def make_point(model: Any, pack: RandomPack, layer: int, tokens: Sequence[int]) -> Point:
    residuals = run(model, tokens).residuals
    earlier = None if layer == EMBEDDING else residuals[layer - 1]
    return Point(layer, pack, residuals[layer], earlier)


def prompt(n_vocab: int, n_tokens: int = N_TOKENS, seed: int = 0) -> list[int]:
    """Random tokens, no special ones."""
    rng = np.random.default_rng([seed, 2])
    return [int(token) for token in rng.integers(0, n_vocab - 16, n_tokens)]


def widest_gap(values: NDArray[np.float64]) -> float:
    """The middle of the widest gap among the middle half of the values."""
    ordered = np.sort(values)[len(values) // 4 : -(len(values) // 4)]
    i = int(np.argmax(np.diff(ordered)))
    return float(ordered[i] + ordered[i + 1]) / 2


def _topk_latents(point: Point, n: int) -> list[Latent]:
    """Features that are sometimes among the top k and sometimes not, furthest from the edge."""
    latents = point.pack.latents[point.layer]
    w = np.stack([x.w for x in latents]).astype(np.float64)
    pre = point.h @ w.T + np.array([x.b for x in latents])
    ordered = np.sort(pre, axis=1)[:, ::-1]
    last_in, first_out = ordered[:, TOP_K - 1], ordered[:, TOP_K]
    inside = pre >= last_in[:, None]
    margin = np.where(inside, pre - first_out[:, None], last_in[:, None] - pre).min(axis=0)
    share = inside.mean(axis=0)
    margin[(share == 0) | (share == 1)] = -1
    return [point.pack.gated(latents[i], "topk") for i in np.argsort(margin)[::-1][:n]]


def _condition(h: NDArray[np.float64], latents: list[Latent], **keys: Any) -> Condition:
    """``above`` in the widest gap of the watched value; ``sticky``: hysteresis down to the next."""
    zs = np.stack([activation(x, h) for x in latents])
    values = zs.sum(axis=0) if keys.get("watch") == "sum" else zs.max(axis=0)
    above = widest_gap(values)
    if keys.pop("sticky", False):
        keys["hysteresis"] = above - widest_gap(values[values < above])
    return Condition(tuple(latents), above=above, **keys)


def _ungated(point: Point, n: int, layer: int | None = None) -> list[Latent]:
    latents = point.pack.latents[point.layer if layer is None else layer]
    return [point.pack.gated(latent, "none") for latent in latents[3 : 3 + n]]


def _mute_threshold(p: Point) -> Case:
    latents = [p.pack.gated(x, "threshold", p.threshold(x)) for x in p.firing(2)]
    return Case((Rule("mute", tuple(latents)),))


def _clamp(p: Point, low: float | None, high: float | None) -> Case:
    return Case((Rule("clamp", tuple(p.firing(3)), min=low, max=high),))


def _ablate_span(p: Point) -> Case:
    first, second, third = p.firing(3)
    if p.layer < 1:
        return Case((Rule("ablate", (first, second, third)),))
    return Case((Rule("ablate", (first, second, third, p.pack.directions[p.layer])),))


def _several(p: Point) -> Case:
    one, two, three, four, five = p.firing(5)
    return Case(
        (
            Rule("amplify", (one,), alpha=1.5),
            Rule("mute", (one, two)),
            Rule("scale", (three,), factor=2.5),
            Rule("clamp", (four,), max=0.5),
            Rule("ablate", (five, two)),
            Rule("amplify", (five,), alpha=-0.2, unit="residual"),
        )
    )


def _conditional(p: Point, **keys: Any) -> Case:
    watched = _ungated(p, 3 if "watch" in keys else 1)
    rule = Rule("amplify", (p.firing(1)[0],), alpha=4.0)
    return Case((replace(rule, condition=_condition(p.h, watched, **keys)),))


def _condition_below(p: Point) -> Case:
    (watched,) = _ungated(p, 1)
    below = widest_gap(activation(watched, p.h))
    condition = Condition((watched,), below=below, for_tokens=2)
    return Case((Rule("amplify", tuple(p.firing(2)), alpha=3.0, condition=condition),))


def _condition_earlier(p: Point) -> Case:
    if p.earlier is None:
        return _conditional(p)
    watched = _ungated(p, 1, p.layer - 1)
    condition = _condition(p.earlier, watched, sticky=True)
    return Case((Rule("mute", tuple(p.firing(3)), condition=condition),))


def _audit_beside_enforced(p: Point) -> Case:
    one, two = p.firing(2)
    quiet = Rule("amplify", (one,), alpha=50.0, mode="audit")
    return Case((quiet, Rule("amplify", (two,), alpha=2.0)))


CASES: dict[str, Callable[[Point], Case]] = {
    "amplify absolute": lambda p: Case((Rule("amplify", (p.firing(1)[0],), alpha=-2.5),)),
    "amplify residual": lambda p: Case(
        (Rule("amplify", (p.firing(1)[0],), alpha=0.3, unit="residual"),)
    ),
    "amplify max": lambda p: Case((Rule("amplify", (p.firing(1)[0],), alpha=0.8, unit="max"),)),
    "amplify group": lambda p: Case((Rule("amplify", tuple(p.firing(3)), alpha=1.5),)),
    "mute none": lambda p: Case((Rule("mute", tuple(_ungated(p, 3))),)),
    "mute relu": lambda p: Case((Rule("mute", (p.firing(1)[0],)),)),
    "mute relu group": lambda p: Case((Rule("mute", tuple(p.firing(4))),)),
    "mute threshold": _mute_threshold,
    "mute topk": lambda p: Case((Rule("mute", tuple(_topk_latents(p, 2))),)),
    "scale": lambda p: Case((Rule("scale", tuple(p.firing(2)), factor=-1.5),)),
    "clamp min": lambda p: _clamp(p, 1.5, None),
    "clamp max": lambda p: _clamp(p, None, 0.4),
    "clamp both": lambda p: _clamp(p, 0.5, 1.0),
    "ablate one": lambda p: Case((Rule("ablate", (p.firing(1)[0],)),)),
    "ablate span": _ablate_span,
    "several rules": _several,
    "phase prompt": lambda p: Case((Rule("mute", tuple(p.firing(4)), phase="prompt"),)),
    "phase generation": lambda p: Case((Rule("mute", tuple(p.firing(4)), phase="generation"),)),
    "positions of sequence": lambda p: Case((Rule("mute", tuple(p.firing(4)), positions=(5, 20)),)),
    "positions of answer": lambda p: Case(
        (Rule("mute", tuple(p.firing(4)), positions=(1, None), positions_of="answer"),)
    ),
    "condition": _conditional,
    "condition with hysteresis": lambda p: _conditional(p, sticky=True),
    "condition for tokens": lambda p: _conditional(p, for_tokens=2),
    "condition on a sum": lambda p: _conditional(p, watch="sum", sticky=True, for_tokens=2),
    "condition on a maximum": lambda p: _conditional(p, watch="max"),
    "condition below": _condition_below,
    "condition at an earlier layer": _condition_earlier,
    "switched on by an alert": lambda p: _conditional(p, latch=True),
    "switched on by an alert on the answer": lambda p: _conditional(
        p, latch=True, phase="generation"
    ),
    "dose clamp": lambda p: Case((Rule("amplify", (p.firing(1)[0],), alpha=9.0),), dose_max=0.25),
    "dose clamp of several rules": lambda p: replace(_several(p), dose_max=0.2),
    "audit beside enforced": _audit_beside_enforced,
}
