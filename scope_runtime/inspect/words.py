"""What was found, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from scope_runtime.inspect.compare import Comparison, Spike
from scope_runtime.inspect.reading import Reading, Said
from scope_runtime.inspect.trace import Lit, Trace, answer_from
from scope_runtime.visible import shown_number, shown_token

_QUOTED = 3


def trace_words(found: Trace) -> tuple[str, ...]:
    """Where each feature was lit first."""
    start = answer_from(found.reading)
    above = f" above {found.above:g}" if found.above else ""
    lines = []
    for feature, first, answered in zip(
        found.features, found.first, found.first_answer, strict=True
    ):
        if first is None:
            lines.append(f"{feature} is not lit{above} at any token.")
            continue
        line = f"{feature} is first lit{above} at {_token(found.reading, first.position)}"
        line += f" ({shown_number(first.activation)})"
        if start is None or first.position >= start:
            line += _about_to_say(first)
        elif answered is None:
            line += " of the prompt, and nowhere in the answer"
        else:
            line += f" of the prompt; in the answer at {_token(found.reading, answered.position)}"
            line += f" ({shown_number(answered.activation)}){_about_to_say(answered)}"
        lines.append(f"{line}.")
    return tuple(lines)


def comparison_words(found: Comparison) -> tuple[str, ...]:
    """What differs most, what spiked, and what may be said of it."""
    return (*_differs(found), *_spiked(found), _certain(found))


def said_words(said: Sequence[Said], n: int = _QUOTED) -> str:
    """``“␣You” 60%, “␣V” 29%``; of those that would be 0% none."""
    return ", ".join(
        f"“{shown_token(each.text)}” {each.probability:.0%}" for each in likely(said)[:n]
    )


def likely(said: Sequence[Said]) -> Sequence[Said]:
    """Those that are shown: more than half a percent, and the likeliest in any case."""
    return [each for i, each in enumerate(said) if not i or each.probability > 0.005]


def _about_to_say(lit: Lit) -> str:
    return f", as the model was about to say {said_words(lit.said)}" if lit.said else ""


def _token(reading: Reading, position: int) -> str:
    # An answer taken by itself (`Reading.answer`) is counted from its own first token.
    of = " of the answer" if reading.n_prompt == 0 else ""
    return f"token {position} “{shown_token(reading.pieces[position])}”{of}"


def _differs(found: Comparison) -> tuple[str, ...]:
    a, b = found.names
    if not found.differences or not any(each.a != each.b for each in found.differences):
        return (f"Nothing differs: every feature is as active in {a} as in {b}.",)
    top = found.differences[0]
    return (
        f"{top.feature} differs most: {found.at} activation {shown_number(top.a)} ({a}), "
        f"{shown_number(top.b)} ({b}).",
    )


def _spiked(found: Comparison) -> tuple[str, ...]:
    spike = found.spiked
    if spike is None:
        return ()
    side = spike.spiked == "b"
    one, other = (spike.spike_b, spike.spike_a) if side else (spike.spike_a, spike.spike_b)
    readings = found.b if side else found.a
    elsewhere = f"at most {shown_number(other.activation)}"
    if other.activation <= 0:
        elsewhere = "not lit at all"
    return (
        f"{spike.feature} spiked: {shown_number(one.activation)} at "
        f"{_token(readings[one.text], one.position)}{_of_text(readings, one)} ({found.names[side]}); "
        f"{elsewhere} ({found.names[not side]}).",
    )


def _of_text(readings: Sequence[Reading], spike: Spike) -> str:
    return f" of text {spike.text}" if len(readings) > 1 else ""


def _certain(found: Comparison) -> str:
    what = "pairs of texts" if found.paired else "texts each"
    if found.test is None:
        n = f"{len(found.a)} and {len(found.b)} texts"
        if len(found.a) == len(found.b) == 1:
            n = "One pair of texts" if found.paired else "One text each"
        elif found.paired:
            n = f"{len(found.a)} {what}"
        return (
            f"{n}: this describes what was read and no more. Whether features differ beyond it takes "
            f"{found.needed} {what} or more."
        )
    drawn = "every one of" if found.test.exact else "drawn:"
    kind = "signs" if found.paired else "assignments"
    count = f"{len(found.a)} {what}" if found.paired else f"{len(found.a)} and {len(found.b)} texts"
    return (
        f"Over {count}, {found.n_significant} of {found.n_features} features differ (adjusted p ≤ {found.alpha:g}). "
        f"While nothing differs, the chance that any at all is named is at most {found.alpha:.0%}: a Westfall-Young "
        f"max-T permutation test over texts, {drawn} {found.test.n_arrangements:,} {kind}."
    )
