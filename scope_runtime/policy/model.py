"""A policy after it was read and checked: frozen data, nothing resolved, nothing opened.

Names are those of the policy file (docs/policy.md) and of the glossary in docs/how-it-works.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scope_runtime.errors import Location
from scope_runtime.types import StrEnum

EMBEDDING = -1
"""Layer number of the hook point before block 0, written ``embedding`` in a policy."""


class Mode(StrEnum):
    """Whether rules change the residual, only report what they would have done, or rest."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    OFF = "off"


class Apply(StrEnum):
    """When a reload reaches a running generation."""

    NEXT_TOKEN = "next-token"
    NEXT_REQUEST = "next-request"


class Op(StrEnum):
    """What a rule does; the formulas are in docs/policy.md."""

    AMPLIFY = "amplify"
    MUTE = "mute"
    SCALE = "scale"
    CLAMP = "clamp"
    ABLATE = "ablate"
    ALERT = "alert"


class Unit(StrEnum):
    """What ``alpha`` is counted in."""

    ABSOLUTE = "absolute"
    RESIDUAL = "residual"
    MAX = "max"


class GateKind(StrEnum):
    """What stands between a pre-activation and the activation z."""

    NONE = "none"
    RELU = "relu"
    THRESHOLD = "threshold"
    TOPK = "topk"


class Phase(StrEnum):
    """``generation`` starts at the column whose logits choose the first answer token."""

    PROMPT = "prompt"
    GENERATION = "generation"


class PositionsOf(StrEnum):
    """What positions are counted from."""

    SEQUENCE = "sequence"
    ANSWER = "answer"


class Watch(StrEnum):
    """How a group's activations become one value."""

    MAX = "max"
    SUM = "sum"


class Severity(StrEnum):
    """How loud an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class OnExcess(StrEnum):
    """What happens where the dose limit is exceeded."""

    CLAMP = "clamp"
    WARN = "warn"
    ABORT = "abort"


class Keep(StrEnum):
    """What the audit log keeps of a request's prompt or output; the most private one first."""

    OFF = "off"
    COMMIT = "commit"
    KEEP = "keep"


class Action(StrEnum):
    """What a firing alert does."""

    LOG = "log"
    METRIC = "metric"
    WEBHOOK = "webhook"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class ModelRequirement:
    """``spec.model``: what the policy says it was written for. None: not said, not checked."""

    architecture: str | None = None
    layers: int | None = None
    width: int | None = None
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """An override of the gate that the pack recorded. ``threshold`` goes with kind threshold, ``k`` with topk."""

    kind: GateKind
    threshold: float | None = None
    k: int | None = None


@dataclass(frozen=True, slots=True)
class PackFeature:
    """A feature named by the policy: row ``id`` of ``layer`` in ``pack`` (path relative to the policy's root)."""

    name: str
    pack: str
    layer: int
    id: int
    gate: Gate | None
    location: Location


@dataclass(frozen=True, slots=True)
class VectorFeature:
    """A control vector named by the policy; ``layers`` None means every layer in the file."""

    name: str
    vector: str
    layers: tuple[int, ...] | None
    location: Location


@dataclass(frozen=True, slots=True)
class GroupFeature:
    """A name for several pack features."""

    name: str
    members: tuple[str, ...]
    location: Location


Feature = PackFeature | VectorFeature | GroupFeature


@dataclass(frozen=True, slots=True)
class Positions:
    """Inclusive range of token positions; None is open. Counted over the sequence, or from the first answer column."""

    first: int | None
    last: int | None
    of: PositionsOf


@dataclass(frozen=True, slots=True)
class Condition:
    """Acts only while a feature (or group) is above or below a value.

    With ``hysteresis`` h it switches off only below ``above - h`` (or above ``below + h``); ``for_tokens`` consecutive
    tokens are needed to switch on.
    """

    feature: str
    above: float | None
    below: float | None
    hysteresis: float
    for_tokens: int
    watch: Watch
    location: Location


@dataclass(frozen=True, slots=True)
class When:
    """Where a rule acts; None does not restrict."""

    phase: Phase | None = None
    positions: Positions | None = None
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class AlertSpec:
    """The keys of an alert rule. ``switch_on`` names rules that stay off until this alert fires in a request."""

    above: float | None
    below: float | None
    for_tokens: int
    keep_firing_for_tokens: int
    watch: Watch
    severity: Severity
    actions: tuple[Action, ...]
    switch_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """The share of requests (or tenants) that a rule reaches."""

    percent: float
    by: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One intervention or one alert.

    ``targets`` are names in ``spec.features`` (groups not yet expanded). Which of the optional fields are set follows
    from ``op``; the schema guarantees it.
    """

    name: str
    op: Op
    targets: tuple[str, ...]
    mode: Mode | None
    when: When
    alpha: float | None = None
    unit: Unit | None = None
    factor: float | None = None
    min: float | None = None
    max: float | None = None
    alert: AlertSpec | None = None
    rollout: Rollout | None = None
    location: Location = field(default=Location(""))


@dataclass(frozen=True, slots=True)
class DoseLimit:
    """``spec.limits.dose``: the largest dose at one hook point, and what happens above it."""

    max: float
    on_excess: OnExcess
    location: Location


@dataclass(frozen=True, slots=True)
class Exemption:
    """``spec.exceptions``: requests matching ``selector`` are exempt from ``rules`` until (and on) ``until``."""

    selector: tuple[tuple[str, tuple[str, ...]], ...]
    rules: tuple[str, ...]
    owner: str
    until: str
    location: Location


@dataclass(frozen=True, slots=True)
class Contents:
    """``spec.audit``: what is kept of prompts and outputs. None: not said, so that another policy may ask for it."""

    prompts: Keep | None = None
    outputs: Keep | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy file.

    Attributes:
        root: directory that every path in the policy must stay inside (the policy file's own, unless told otherwise).
        canonical: the document as canonical JSON (sorted keys, no spaces), comments and layout gone.
        name_at, generation_at: where ``metadata.name`` and ``metadata.generation`` stand.
    """

    name: str
    owner: str | None
    generation: int | None
    description: str | None
    model: ModelRequirement | None
    mode: Mode
    apply: Apply
    selector: tuple[tuple[str, tuple[str, ...]], ...] | None
    features: tuple[Feature, ...]
    dose_limit: DoseLimit | None
    rules: tuple[Rule, ...]
    exceptions: tuple[Exemption, ...]
    file: str
    root: str
    canonical: str
    name_at: Location
    generation_at: Location | None
    contents: Contents = Contents()

    def feature(self, name: str) -> Feature:
        """The feature of that name. Raises KeyError."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)
