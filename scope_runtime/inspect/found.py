"""What a search for features found."""

from __future__ import annotations

from dataclasses import dataclass

from scope_runtime.inspect.rank import RankedFeature, Ranking
from scope_runtime.inspect.sample import Pool
from scope_runtime.inspect.vocabulary import Push
from scope_runtime.pack_types import layer_name


@dataclass(frozen=True, slots=True)
class TokenInContext:
    """A token at which a feature is strong.

    Attributes:
        text: number of the text, from 0, positive ones first.
        position: of the token in it.
        positive: whether that text is.
    """

    text: int
    position: int
    positive: bool
    activation: float
    before: str
    token: str
    after: str


@dataclass(frozen=True, slots=True)
class FoundFeature:
    """A feature with all that helps a person to say what it is.

    Attributes:
        rank: how it did; see `RankedFeature`.
        group: number of its group, from 0; groups are in the order of their first features.
        label: from the SAE's own source, perhaps empty.
        contexts: where it is strongest, at most one token a text.
        favours: tokens that its direction makes more likely; empty where the head cannot be read.
        disfavours: tokens that it makes less likely.
        peak: largest activation at any token of the texts.
        threshold: between its largest activation in negative texts and its middle peak in positive
            ones, which is where an alert may begin.
    """

    rank: RankedFeature
    group: int
    label: str
    contexts: tuple[TokenInContext, ...]
    favours: tuple[Push, ...]
    disfavours: tuple[Push, ...]
    peak: float
    threshold: float

    @property
    def name(self) -> str:
        """``LAYER:ID``, as commands take it."""
        return f"{layer_name(self.rank.layer)}:{self.rank.id}"


@dataclass(frozen=True, slots=True)
class Found:
    """What `find` found.

    Attributes:
        features: candidates, the best first.
        ranking: what they were chosen from and held against.
        at: which tokens of a text counted.
        n_positive: texts that show the behaviour.
        n_negative: texts that do not.
        own: whether those are texts that the model made up.
        n_latents: of all layers together.
        layers: that were looked at.
        notes: what could not be done, in sentences.
    """

    features: tuple[FoundFeature, ...]
    ranking: Ranking
    at: Pool
    n_positive: int
    n_negative: int
    own: bool
    n_latents: int
    layers: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[tuple[FoundFeature, ...], ...]:
        """Features that belong together, the group of the best first."""
        n = 1 + max((each.group for each in self.features), default=-1)
        return tuple(tuple(f for f in self.features if f.group == number) for number in range(n))

    def is_significant(self, feature: FoundFeature) -> bool:
        """Whether chance does not explain it."""
        return feature.rank in self.ranking.significant
