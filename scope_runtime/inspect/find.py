"""Find the features behind a behaviour: from texts that show it and texts that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scope_runtime.errors import ModelError, PackError, UsageError
from scope_runtime.inspect.found import Found, FoundFeature, TokenInContext
from scope_runtime.inspect.groups import correlation, cosines, group_numbers, grouped
from scope_runtime.inspect.kinds import Answers, Kinds, answered_kinds, encoded, own_tokens
from scope_runtime.inspect.rank import DEFAULTS, Criteria, Ranking, rank
from scope_runtime.inspect.sample import Pool, Sample
from scope_runtime.inspect.texts import Words, tokenised, words_of
from scope_runtime.inspect.vocabulary import OutputHead, Push, pushed
from scope_runtime.pack_types import F32Array, layer_name
from scope_runtime.sae.layers import SaeLayers

if TYPE_CHECKING:
    from converters.texts import Text
    from scope_runtime.files import Progress
    from scope_runtime.llama.checks import ModelInfo
    from scope_runtime.llama.context import Context

N_CONTEXTS = 4
N_AROUND = 8
N_PUSHES = 8

Report = Callable[[str], "Progress | None"]
"""Told what is being done now; gives back whom to tell how far it has come."""


def _quiet(_: str) -> None:
    return None


def find(
    model: str | Path,
    sae: str | Path | SaeLayers,
    positive: Sequence[Text],
    negative: Sequence[Text] | None = None,
    *,
    at: Pool | str = Pool.MAX,
    chat: bool = False,
    answers: Answers | None = None,
    criteria: Criteria = DEFAULTS,
    n_ctx: int = 1024,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    report: Report = _quiet,
) -> Found:
    """Finds the features that tell texts with a behaviour from texts without it.

    Each half of the texts chooses candidates, which the other half judges; see `rank`.

    Args:
        model: GGUF file.
        sae: ``PATH`` or ``PATH:LAYERS`` of whole SAE layers.
        positive: texts that show the behaviour.
        negative: texts that do not, and are like them otherwise; None: the model makes some up (`own_texts`).
        at: which tokens count; see `Pool`.
        chat: plain texts are user's messages.
        answers: the texts are prompts, and what the model answers counts; not without negative ones.
        criteria: how many candidates, and how sure to be.
        n_ctx: most tokens of a text.
        n_threads: of llama.cpp.
        n_gpu_layers: blocks on the GPU.
        report: told what is being done.

    Raises:
        ModelError: the model cannot be used.
        PackError: the SAEs cannot be used, or are not of this model.
        UsageError: the texts cannot be used.
    """
    from scope_runtime.llama.capture import capturing
    from scope_runtime.llama.checks import check_model

    at = Pool(at)
    saes = sae if isinstance(sae, SaeLayers) else SaeLayers.open(sae)
    info = check_model(model)
    saes.check_fits(info)
    loading = report(f"loading {Path(model).name}")
    with capturing(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=loading and (lambda share: loading(int(1000 * share), 1000)),
    ) as context:
        kinds = _kinds(context, positive, negative, chat, answers, criteria.seed, report)
        read = encoded(
            context,
            saes,
            kinds.positive,
            kinds.negative,
            begins=kinds.begins,
            ahead=at is Pool.LAST,
            progress=report("reading texts"),
        )
        report("ranking features")
        ranking, notes = _ranked(read, at, criteria)
        notes += kinds.notes
        found = _explained(ranking, read, saes, info, words_of(context), at, report, notes)
        return replace(found, own=negative is None)


def _kinds(
    context: Context,
    positive: Sequence[Text],
    negative: Sequence[Text] | None,
    chat: bool,
    answers: Answers | None,
    seed: int,
    report: Report,
) -> Kinds:
    if answers is not None:
        if negative is None:
            raise UsageError("answers are held against answers", hint="Give negative prompts")
        progress = report("letting the model answer")
        return answered_kinds(context, positive, negative, answers, progress)
    yes = tokenised(context, positive, chat=chat)
    if negative is not None:
        return Kinds(yes, tokenised(context, negative, chat=chat))
    progress = report("letting the model make up texts")
    return Kinds(yes, own_tokens(context, positive, chat=chat, seed=seed, progress=progress))


def _ranked(read: Sample, at: Pool, criteria: Criteria) -> tuple[Ranking, list[str]]:
    pooled = read.pooled(at)
    try:
        return rank(pooled, read.positive, criteria, read.ahead), []
    except PackError as reason:
        note = f"not ranked by what features do to the next word: {reason}"
        return rank(pooled, read.positive, criteria), [note]


def _explained(
    ranking: Ranking,
    read: Sample,
    saes: SaeLayers,
    info: ModelInfo,
    words: Words,
    at: Pool,
    report: Report,
    said: Sequence[str],
) -> Found:
    chosen = [(each.layer, each.id) for each in ranking.features]
    activations = read.activations(chosen)
    notes = [*said, *dict.fromkeys(note for layer in saes for note in layer.notes)]
    directions, without = _directions(saes, chosen)
    notes += without
    pushes: list[tuple[tuple[Push, ...], tuple[Push, ...]]] = [((), ())] * len(chosen)
    try:
        head = OutputHead(info)
        scores = head.scores(directions, report("reading the output head"))
        pushes = [
            pushed(row, N_PUSHES, words) if direction.any() else ((), ())
            for row, direction in zip(scores, directions, strict=True)
        ]
    except ModelError as reason:
        notes.append(f"no vocabulary: {reason}")
    peaks = np.maximum.reduceat(activations, read.starts[:-1], axis=0)
    group = group_numbers(grouped(correlation(activations), cosines(directions)))
    labels = {layer.layer: layer.labels for layer in saes}
    features = tuple(
        FoundFeature(
            each,
            group[i],
            labels[each.layer].get(each.id, ""),
            tuple(_contexts(read, activations[:, i], words)),
            *pushes[i],
            float(activations[:, i].max()),
            float(np.median(peaks[read.positive, i]) + peaks[~read.positive, i].max()) / 2,
        )
        for i, each in enumerate(ranking.features)
    )
    n_positive = int(read.positive.sum())
    return Found(
        features,
        ranking,
        at,
        n_positive,
        read.n_texts - n_positive,
        False,
        sum(layer.d_sae for layer in saes),
        saes.layers,
        tuple(notes),
    )


def _directions(saes: SaeLayers, features: Sequence[tuple[int, int]]) -> tuple[F32Array, list[str]]:
    """Directions, of a feature that its pack does not hold zeros, and a note on those."""
    width = saes.layer(saes.layers[0]).width
    out = np.zeros((len(features), width), np.float32)
    missing = []
    for i, (layer, id) in enumerate(features):
        try:
            out[i] = saes.layer(layer).decoder([id])[0]
        except PackError:
            missing.append(f"{layer_name(layer)}:{id}")
    if not missing:
        return out, []
    return out, [
        f"no vocabulary for {', '.join(missing)}: {saes.path} does not hold their directions"
    ]


def _contexts(read: Sample, activation: F32Array, words: Words) -> Iterable[TokenInContext]:
    """The strongest token of each of the texts where a feature is strongest."""
    peaks = np.maximum.reduceat(activation, read.starts[:-1])
    for text in np.argsort(-peaks, kind="stable")[:N_CONTEXTS].tolist():
        first, after = int(read.starts[text]), int(read.starts[text + 1])
        place = first + int(np.argmax(activation[first:after]))
        if activation[place] <= 0:
            return

        yield TokenInContext(
            text,
            place - first,
            bool(read.positive[text]),
            float(activation[place]),
            words(read.tokens[max(first, place - N_AROUND) : place].tolist()),
            words([int(read.tokens[place])]) or "\ufffd",  # a piece of a character
            words(read.tokens[place + 1 : min(after, place + 1 + N_AROUND)].tolist()),
        )
