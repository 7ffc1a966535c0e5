"""What every picture draws: a table of numbers with names, the size of the darkest one, and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scope_runtime.inspect.compare import Comparison, Difference, counted, pooled
from scope_runtime.inspect.features import names
from scope_runtime.inspect.reading import Reading, Said
from scope_runtime.inspect.trace import Trace, settled
from scope_runtime.inspect.words import comparison_words, likely, trace_words
from scope_runtime.pack_types import F32Array
from scope_runtime.visible import shown_number, shown_token, visible

MOST_TEXTS = 40
"""Of more texts the first are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """Numbers over tokens, or over texts.

    Attributes:
        title: what it shows.
        rows: a token or a text each.
        pieces: the tokens' own texts, to be read one after the other; None where rows are texts.
        columns: features.
        values: (n_rows, n_columns).
        scale: the value of the full colour; larger ones have it too.
        signed: values are differences, with a colour for each side.
        n_prompt: so many rows are prompt, the rest is an answer; None: not known.
        beside: a title and words for every row.
    """

    title: str
    rows: tuple[str, ...]
    pieces: tuple[str, ...] | None
    columns: tuple[str, ...]
    values: F32Array = field(repr=False)
    scale: float
    signed: bool = False
    n_prompt: int | None = None
    beside: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def shares(self) -> F32Array:
        """Values as shares of the scale, -1 to 1."""
        scale = self.scale if self.scale > 0 else 1.0
        return np.asarray(np.clip(self.values / np.float32(scale), -1 if self.signed else 0, 1))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A table of words and numbers: the title, what its columns mean, their titles, rows."""

    title: str
    meaning: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A page: title, sentences, tables, heatmaps."""

    title: str
    sentences: tuple[str, ...]
    heats: tuple[Heat, ...]
    ranked: tuple[Ranked, ...] = ()


def trace_picture(traces: Sequence[Trace]) -> Picture:
    """What `trace` found, as a picture."""
    sentences: list[str] = []
    heats = []
    for one in traces:
        title = one.reading.name
        words = trace_words(one)
        sentences += words if len(traces) == 1 else [f"{title}: {each}" for each in words]
        strongest = tuple(
            ", ".join(f"{lit.feature} {shown_number(lit.activation)}" for lit in row)
            for row in one.strongest
        )
        heats.append(
            _of_tokens(
                title,
                one.reading,
                tuple(names(one.features)),
                one.activations,
                _scale([one.activations[settled(len(one.activations))]]),
                beside=(*_next(one.reading), ("strongest features", strongest)),
            )
        )
    return Picture("Features over tokens", tuple(sentences), tuple(heats))


def comparison_picture(found: Comparison) -> Picture:
    """What `compare` found, as a picture."""
    a, b = found.names
    judged: tuple[str, ...] = ("effect", "p") if found.test is not None else ("effect",)
    judged = judged if any(each.effect is not None for each in found.differences) else ()
    ranked = Ranked(
        f"Features that differ most ({found.at} activation of a text)",
        _meaning(found, judged),
        ("feature", a, b, *judged, f"largest, {a}", f"largest, {b}"),
        tuple(
            (
                str(each.feature),
                shown_number(each.a),
                shown_number(each.b),
                *(_judgement(each, name) for name in judged),
                shown_number(each.spike_a.activation),
                shown_number(each.spike_b.activation),
            )
            for each in found.differences
        ),
    )
    columns = tuple(str(each.feature) for each in found.differences)
    if len(found.a) == len(found.b) == 1:
        heats = _of_pair(found, columns)
    else:
        heats = [_of_texts(found, columns), *_where_spiked(found, columns)]
    return Picture(f"{a} and {b}", comparison_words(found), tuple(heats), (ranked,))


def _meaning(found: Comparison, judged: Sequence[str]) -> str:
    a, b = found.names
    words = {
        "effect": f"effect: {b} minus {a}, in standard deviations and the features' common one",
        "p": f"p: adjusted for {found.n_features} features",
    }
    largest = "largest: at any token"
    return "; ".join([*(words[name] for name in judged), largest])


def _judgement(each: Difference, name: str) -> str:
    value = each.p if name == "p" else each.effect
    if value is None:
        return ""
    return f"{value:.2g}" if name == "p" else f"{value:+.2f}"


def _of_pair(found: Comparison, columns: tuple[str, ...]) -> list[Heat]:
    [a], [b] = found.activations_a, found.activations_b
    if found.aligned:
        change = b - a
        title = f"{found.names[1]} minus {found.names[0]}"
        scale = _scale([change[counted(found.a[0])]])
        return [_of_tokens(title, found.a[0], columns, change, scale, signed=True)]
    scale = _scale([a[counted(found.a[0])], b[counted(found.b[0])]])
    return [
        _of_tokens(name, reading, columns, values, scale, beside=_next(reading))
        for name, reading, values in zip(found.names, (found.a[0], found.b[0]), (a, b), strict=True)
    ]


def _of_texts(found: Comparison, columns: tuple[str, ...]) -> Heat:
    rows, values = [], []
    for name, readings, activations in (
        (found.names[0], found.a, found.activations_a),
        (found.names[1], found.b, found.activations_b),
    ):
        for number, (reading, each) in enumerate(zip(readings, activations, strict=True)):
            if number < MOST_TEXTS:
                text = visible(" ".join(reading.text.split()))
                rows.append(f"{name} {number}: {text[:40]}{'…' if len(text) > 40 else ''}")
                values.append(pooled(each, reading, found.at))
    table = np.stack(values)
    return Heat(
        f"{found.at} activation of each text",
        tuple(rows),
        None,
        columns,
        table,
        _scale([table]),
    )


def _where_spiked(found: Comparison, columns: tuple[str, ...]) -> list[Heat]:
    """The text in which the feature that spiked did so."""
    best = found.spiked
    if best is None:
        return []
    side = best.spiked == "b"
    spike = best.spike_b if side else best.spike_a
    reading = (found.b if side else found.a)[spike.text]
    values = (found.activations_b if side else found.activations_a)[spike.text]
    title = f"{found.names[side]} {spike.text}: where {best.feature} was most active"
    scale = _scale([values[counted(reading)]])
    return [_of_tokens(title, reading, columns, values, scale, beside=_next(reading))]


def _of_tokens(
    title: str,
    reading: Reading,
    columns: tuple[str, ...],
    values: F32Array,
    scale: float,
    *,
    signed: bool = False,
    beside: tuple[tuple[str, tuple[str, ...]], ...] = (),
) -> Heat:
    return Heat(
        title,
        tuple(map(shown_token, reading.pieces)),
        reading.pieces,
        columns,
        values,
        scale,
        signed,
        # An answer taken by itself has no prompt, and is not the answer to nothing.
        reading.n_prompt or None,
        beside,
    )


def _next(reading: Reading) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not reading.next:
        return ()
    return (("about to say", tuple(next_words(each) for each in reading.next)),)


def next_words(said: Sequence[Said], n: int = 3) -> str:
    """``␣You 60%, ␣V 29%``."""
    return ", ".join(
        f"{shown_token(each.text)} {each.probability:.0%}" for each in likely(said)[:n]
    )


def _scale(values: Sequence[F32Array]) -> float:
    return max((float(np.abs(each).max(initial=0.0)) for each in values), default=0.0)
