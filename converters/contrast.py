"""Contrast vectors: what differs in a model's residuals between two kinds of text, from llama.cpp itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.pack import Report
from converters.recipe import Input, find_input, input_of, metadata
from converters.texts import Text, read_texts, tokenised
from scope_runtime.errors import PackError, UsageError
from scope_runtime.files import Progress
from scope_runtime.llama.capture import capturing, check_layers, residuals
from scope_runtime.llama.chat import ChatTemplate
from scope_runtime.llama.checks import model_digest
from scope_runtime.llama.context import Context
from scope_runtime.pack_types import F32Array
from scope_runtime.types import StrEnum
from scope_runtime.vectors import ControlVector, read_control_vector, write_control_vector

N_CTX = 1024


class Method(StrEnum):
    """How a direction is found.

    ``mean``: the positive texts' mean minus the negative ones', as long as it is. ``pca``: the first
    principal axis of the differences of pairs, of length 1, pointing from negative to positive. The
    differences are not centred: their mean is what they have in common, and what is looked for.
    """

    MEAN = "mean"
    PCA = "pca"


@dataclass(frozen=True, slots=True)
class ContrastLayer:
    """How well a layer's direction tells the two kinds apart.

    Attributes:
        length: of the direction.
        separation: share of all (positive, negative) pairs whose positive lies further along it;
            0.5 is chance. Measured on the texts that it was made from, so it flatters.
        explained: share of the differences' squared length that lies along it.
    """

    layer: int
    length: float
    separation: float
    explained: float


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """A contrast vector that was written, and how its layers did."""

    vector: ControlVector
    layers: tuple[ContrastLayer, ...]


def contrast_vector(
    model: str | Path,
    positive: str | Path,
    negative: str | Path,
    out: str | Path,
    *,
    method: Method = Method.MEAN,
    layers: Sequence[int] | None = None,
    chat: bool = False,
    n_ctx: int = N_CTX,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    report: Report = lambda _: None,
) -> Contrast:
    """Makes a control vector from two files of texts, by the residual at each text's last token.

    Args:
        model: a GGUF file.
        positive: texts of the wanted kind (see `read_texts`).
        negative: texts of the other kind; for ``pca`` line by line the positive ones' partners.
        out: the file to be written, replaced if it exists.
        method: see `Method`.
        layers: 0-based blocks from 1 on; None is all that llama.cpp's control vectors reach.
        chat: whether each text is put through the model's chat template as a user's message.
        n_ctx: the longest text, in tokens.
        n_threads: CPU threads.
        n_gpu_layers: blocks to offload.
        report: told what is being done.

    Raises:
        UsageError: the texts cannot be used so.
        PackError: two kinds of text that do not differ, or the file cannot be written.
    """
    kinds = [read_texts(positive), read_texts(negative)]
    if method is Method.PCA and len(kinds[0]) != len(kinds[1]):
        raise UsageError(
            "pca takes pairs: as many positive texts as negative ones",
            found=f"{len(kinds[0])} and {len(kinds[1])}",
        )
    progress = report(f"loading {Path(model).name}")
    with capturing(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=share(progress),
    ) as context:
        last = context.shape.n_layer - 1
        if last < 1:
            raise UsageError("a model of one block has no layer that control vectors reach")
        wanted = check_layers(context, range(1, last + 1) if layers is None else layers)
        if wanted[0] < 1:
            raise UsageError(
                "llama.cpp's control vectors reach layer 1 and above", found=str(wanted[0])
            )
        template = ChatTemplate.of(context) if chat else None
        done = report(f"reading {len(kinds[0]) + len(kinds[1])} texts")
        total = len(kinds[0]) + len(kinds[1])
        ends = [
            _last_residuals(context, texts, wanted, template, done, offset, total)
            for texts, offset in zip(kinds, (0, len(kinds[0])), strict=True)
        ]
        info = context.info
    found = {layer: direction(ends[0][layer], ends[1][layer], method) for layer in wanted}
    report(f"digest of {Path(model).name}")
    inputs = {
        "model": Input(Path(model).name, model_digest(info)),
        "positive": input_of(Path(positive)),
        "negative": input_of(Path(negative)),
    }
    recipe = {
        "make": "contrast",
        "method": str(method),
        "chat": chat,
        "layers": list(wanted),
        "n_ctx": n_ctx,
        "inputs": {name: each.data() for name, each in inputs.items()},
    }
    about = metadata(
        recipe, source=f"contrast of {inputs['positive'].name} and {inputs['negative'].name}"
    )
    write_control_vector(out, found, model_hint=info.architecture, metadata=about)
    rows = tuple(_quality(layer, found[layer], ends[0][layer], ends[1][layer]) for layer in wanted)
    return Contrast(read_control_vector(out), rows)


def replay_contrast(
    recipe: Mapping[str, Any], out: str | Path, folders: Sequence[Path]
) -> ControlVector:
    """Makes one again from its recipe; see `converters.vector.replay`."""
    inputs = recipe["inputs"]
    return contrast_vector(
        find_input(inputs["model"], folders, model_digest),
        find_input(inputs["positive"], folders),
        find_input(inputs["negative"], folders),
        out,
        method=Method(recipe["method"]),
        layers=recipe["layers"],
        chat=recipe["chat"],
        n_ctx=recipe["n_ctx"],
    ).vector


def direction(positive: F32Array, negative: F32Array, method: Method) -> F32Array:
    """One layer's direction out of residuals, (n, width) each. Sums in F64.

    Raises:
        PackError: the two kinds do not differ.
    """
    high, low = positive.astype(np.float64), negative.astype(np.float64)
    if method is Method.MEAN:
        found: npt.NDArray[np.float64] = high.mean(axis=0) - low.mean(axis=0)
    else:
        differences = high - low
        found = np.linalg.svd(differences, full_matrices=False)[2][0]
        found = found * (1.0 if (differences @ found).mean() >= 0 else -1.0)
        if not differences.any():
            found = np.zeros_like(found)
    if not np.linalg.norm(found):
        raise PackError("the two kinds of text do not differ")
    return found.astype(np.float32)


def _quality(
    layer: int, direction: F32Array, positive: F32Array, negative: F32Array
) -> ContrastLayer:
    length = float(np.linalg.norm(direction))
    unit = direction.astype(np.float64) / length
    high, low = positive @ unit, negative @ unit
    beaten = (high[:, None] > low[None, :]).mean() + 0.5 * (high[:, None] == low[None, :]).mean()
    paired = len(high) == len(low)
    differences = positive - (negative if paired else negative.mean(axis=0))
    total = float((differences.astype(np.float64) ** 2).sum())
    explained = float(((differences @ unit) ** 2).sum()) / total if total else 0.0
    return ContrastLayer(layer, length, float(beaten), explained)


def _last_residuals(
    context: Context,
    texts: Sequence[Text],
    layers: tuple[int, ...],
    template: ChatTemplate | None,
    progress: Progress | None,
    done: int,
    total: int,
) -> dict[int, F32Array]:
    rows: dict[int, list[F32Array]] = {layer: [] for layer in layers}
    for number, text in enumerate(texts):
        tokens = tokenised(context, text, template)
        if not tokens:
            raise UsageError("a text has no tokens", found=repr(text.text[:40]))
        [found] = residuals(context, [tokens], layers)
        for layer in layers:
            rows[layer].append(found.layers[layer][-1])
        if progress:
            progress(done + number + 1, total)
    return {layer: np.stack(each) for layer, each in rows.items()}


def share(progress: Progress | None) -> Callable[[float], None] | None:
    """A report in counts as one in shares."""
    return None if progress is None else lambda share: progress(int(share * 1000), 1000)
