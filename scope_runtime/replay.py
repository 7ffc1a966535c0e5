"""A program on a recording: the native hook over residuals that a model computed before, without the model.

At each layer the hook sees what the unsteered model computed there. So the program's first layer is
measured exactly as in the model; a later one as if nothing before it had been changed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import Location, ScopeError, UsageError
from scope_runtime.events import Event, EventReader, RequestContext
from scope_runtime.native.hook import Hook
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.program import HEADER, POINT, Program
from scope_runtime.recording import RecordedText, Recording

_SEQUENCE = 0
_POINTS = 1  # the tables' order in the header
_FIRST_COUNT = 8
_FIRST_START = 18


class ReplayError(ScopeError):
    """A program and a recording that do not fit each other."""


@dataclass(frozen=True, slots=True, eq=False)
class RuleReplay:
    """One rule at each token: activation and dose (NaN where not measured), and whether it acted or its alert fired."""

    name: str
    activation: F32Array
    dose: F32Array
    fired: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a program did on one text.

    Attributes:
        n_tokens: how far it came: all tokens, or up to the one where it ended the generation.
        n_prompt: tokens of the prompt; the phase ``generation`` starts at its last token.
        rules: in the program's order.
        residuals: per hook point the residual after the change, (n_tokens, n_embd).
        events: one for each rule, and each change of an alert, as a request's report has them.
        aborted: whether a rule or the dose limit ended it.
    """

    n_tokens: int
    n_prompt: int
    rules: tuple[RuleReplay, ...]
    residuals: Mapping[int, F32Array]
    events: tuple[Event, ...]
    aborted: bool

    def rule(self, name: str) -> RuleReplay | None:
        """The rule of that name; None where the program has none."""
        return next((rule for rule in self.rules if rule.name == name), None)


def hook_points(program: Program) -> tuple[int, ...]:
    """The layers that the hook must see for a program, ascending; -1 is the embedding."""
    header = HEADER.unpack_from(program.blob)
    count, start = header[_FIRST_COUNT + _POINTS], header[_FIRST_START + _POINTS]
    return tuple(np.frombuffer(program.blob, POINT, count, start)["layer"].tolist())


def recorded_text(
    recording: Recording, number: int, program: Program, n_prompt: int | None = None
) -> tuple[RecordedText, int]:
    """One text of a recording and the length of its prompt, held against a program.

    Args:
        recording: as read.
        number: of the text, from 0.
        program: the one to run.
        n_prompt: tokens of the prompt; else what the recording says, else all of the text.

    Raises:
        ReplayError: there is no such text, or it lacks a layer, or is of another width.
    """
    where = Location(recording.path)
    if not 0 <= number < len(recording.texts):
        raise ReplayError(
            "the recording has no such text",
            location=where,
            found=f"text {number}",
            expected=f"0 to {len(recording.texts) - 1}",
        )
    text = recording.texts[number]
    for layer in hook_points(program):
        if layer not in text.layers:
            raise ReplayError(
                f"the recording lacks a layer that {program.policy or 'the program'} needs",
                location=where,
                found=f"layers {', '.join(map(layer_name, text.layers))}",
                expected=layer_name(layer),
                hint="Record again with `scope record --policy`",
            )
        width = text.layers[layer].shape[1]
        if width != program.n_embd:
            raise ReplayError(
                "the recording is of a model of another width",
                location=where,
                found=str(width),
                expected=str(program.n_embd),
            )
    n = n_prompt if n_prompt is not None else text.n_prompt or len(text.tokens)
    if not 1 <= n <= len(text.tokens):
        raise ReplayError(
            "the prompt is longer than the text",
            location=where,
            found=f"{n} tokens",
            expected=f"1 to {len(text.tokens)}",
        )
    return text, n


def replay(
    program: Program,
    text: RecordedText,
    n_prompt: int,
    *,
    labels: Mapping[str, str] | None = None,
    model_digest: str = "",
) -> Replay:
    """Runs a program over one text as a request would: the prompt at once, then token by token.

    Args:
        program: compiled without control vectors (see ``compile_policy``): all of it must be on the hook.
        text: has every layer of `hook_points` (`recorded_text` sees to it).
        n_prompt: 1 to the text's tokens.

    Raises:
        UsageError: a part of the program is not on the hook.
    """
    if program.control_vectors:
        raise UsageError("a program with control vectors cannot be run on a recording")
    hook = Hook(program.n_embd, program.n_layer)
    try:
        return _replayed(hook, program, text, n_prompt, labels or {}, model_digest)
    finally:
        hook.close()


def _replayed(
    hook: Hook,
    program: Program,
    text: RecordedText,
    n_prompt: int,
    labels: Mapping[str, str],
    model_digest: str,
) -> Replay:
    serial = hook.install(program.blob)
    points = hook_points(program)
    after = {layer: text.residual(layer) for layer in points}
    hook.request_begin(_SEQUENCE, 1, n_prompt)
    n_tokens, aborted = 0, False
    steps = [0, *range(n_prompt, len(text.tokens) + 1)]
    for start, end in itertools.pairwise(steps):
        _ubatch(hook, text.tokens, after, start, end)
        n_tokens, aborted = end, bool(hook.request_status(_SEQUENCE).abort)
        if aborted:
            break
    measured = [hook.measured(_SEQUENCE, i, program.n_hooked) for i in range(n_tokens)]
    hook.request_end(_SEQUENCE)
    reader = EventReader({serial: program}, model_digest)
    request = RequestContext(labels, f"replay-{time.time_ns():x}")
    events = [reader.event(raw, request, ()) for raw in hook.drain()]
    rules = tuple(
        RuleReplay(
            rule.name,
            np.array([np.nan if m is None else m.activation[i] for m in measured], np.float32),
            np.array([np.nan if m is None else m.dose[i] for m in measured], np.float32),
            np.array([m is not None and bool(m.fired[i]) for m in measured], np.bool_),
        )
        for i, rule in enumerate(program.rules[: program.n_hooked])
    )
    return Replay(
        n_tokens,
        n_prompt,
        rules,
        {layer: h[:n_tokens] for layer, h in after.items()},
        tuple(event for event in events if event is not None),
        aborted,
    )


def _ubatch(
    hook: Hook, tokens: Sequence[int], after: Mapping[int, F32Array], start: int, end: int
) -> None:
    hook.columns(tokens[start:end], range(start, end))
    for layer, h in after.items():
        part = np.ascontiguousarray(h[start:end])
        if hook.residual(layer, part):
            h[start:end] = part
    hook.end_ubatch()
