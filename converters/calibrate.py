"""Calibration: what a pack's features do in the model that will run, on a sample of text."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters.contrast import share
from converters.pack import Report
from converters.recipe import input_of
from converters.statistics import LayerSample, Shift, Threshold, shifts
from converters.texts import read_texts, tokenised
from scope_runtime.errors import Location, PackError
from scope_runtime.llama.capture import capturing, residuals, windows
from scope_runtime.llama.chat import ChatTemplate
from scope_runtime.llama.checks import ModelInfo, check_model, model_digest
from scope_runtime.pack_types import FeaturePack, PackLayer, layer_name
from scope_runtime.packs import read_pack, write_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.version import __version__

N_CTX = 512


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A calibrated pack, read back from its file.

    Attributes:
        n_texts, n_tokens: the sample.
        thresholds: per layer with a top-k gate, per feature the stand-in for it.
        shifts: statistics far from those that the pack recorded before.
        notes: sentences on what could not be had.
    """

    pack: FeaturePack
    n_texts: int
    n_tokens: int
    thresholds: dict[int, list[Threshold]]
    shifts: tuple[Shift, ...]
    notes: tuple[str, ...]


def calibrate(
    pack: str | Path,
    model: str | Path,
    texts: str | Path,
    out: str | Path | None = None,
    *,
    chat: bool = False,
    drop_encoder: bool = False,
    n_ctx: int = N_CTX,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    report: Report = lambda _: None,
) -> Calibration:
    """Runs a sample through the model and writes each feature's statistics into the pack.

    Args:
        pack: a feature pack.
        model: the GGUF file that the pack will be used with, quantized as it will be.
        texts: the sample (see `read_texts`); texts longer than the context are read in pieces.
        out: the file to be written; None: the pack itself is replaced.
        chat: whether each text is put through the model's chat template as a user's message.
        drop_encoder: leave the whole encoder out; thresholds stand in for the top-k from then on.
        n_ctx: tokens read at a time.
        n_threads: CPU threads.
        n_gpu_layers: blocks to offload.
        report: told what is being done.

    Raises:
        PackError: the pack is damaged, or not for this model.
        UsageError: the sample cannot be used.
    """
    read = read_pack(pack)
    check_pack_fits(read, check_model(model))
    sample = read_texts(texts)
    progress = report(f"loading {Path(model).name}")
    samples = {number: LayerSample(layer) for number, layer in read.layers.items()}
    with capturing(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        progress=share(progress),
    ) as context:
        template = ChatTemplate.of(context) if chat else None
        limit = min(n_ctx, context.n_ctx)  # llama.cpp rounds a context up
        progress = report(f"reading {len(sample)} texts")
        for number, text in enumerate(sample):
            pieces = windows(tokenised(context, text, template), limit)
            for found in residuals(context, pieces, samples):
                for layer, h in found.layers.items():
                    samples[layer].add(h)
            if progress:
                progress(number + 1, len(sample))
        info = context.info
    n_tokens = next(iter(samples.values())).n_tokens
    if not n_tokens:
        raise PackError("the sample has no tokens", location=Location(str(texts)))
    report("statistics")
    layers, thresholds, found_shifts, notes = [], {}, [], []
    for number, one in samples.items():
        stats, best = one.stats(), one.thresholds()
        found_shifts += shifts(one.layer, stats, n_tokens)
        if best is not None:
            thresholds[number] = best
        elif one.layer.gate is GateKind.RELU and one.layer.k is not None:
            notes.append(
                f"layer {layer_name(number)}: no threshold for the top-{one.layer.k}, which needs the whole "
                "encoder: pack it with --exact-gate"
            )
        layers.append(_calibrated(replace(one.layer, stats=stats), best, drop_encoder, n_tokens))
    provenance = dict(read.provenance)
    report(f"digest of {Path(model).name}")
    provenance["calibration"] = json.dumps(
        {
            "model": {"name": Path(model).name, "sha256": model_digest(info)},
            "texts": input_of(Path(texts)).data(),
            "n_texts": len(sample),
            "n_tokens": n_tokens,
            "chat": chat,
            "n_ctx": n_ctx,
            "tool": f"scope-runtime {__version__}",
            "thresholds": {
                layer_name(number): {
                    str(id): [round(each.precision, 6), round(each.recall, 6)]
                    for id, each in zip(read.layers[number].ids.tolist(), best, strict=True)
                }
                for number, best in thresholds.items()
            },
        },
        sort_keys=True,
    )
    target = Path(pack if out is None else out)
    report(f"writing {target.name}")
    write_pack(target, read.model, layers, provenance)
    written = read_pack(target)
    return Calibration(
        written, len(sample), n_tokens, thresholds, tuple(found_shifts), tuple(notes)
    )


def check_pack_fits(pack: FeaturePack, info: ModelInfo) -> None:
    """Raises PackError if a pack is not for this model."""
    for what, found, expected in (
        ("architecture", info.architecture, pack.model.architecture),
        ("number of layers", info.n_layer, pack.model.layers),
        ("width", info.n_embd, pack.model.width),
    ):
        if found != expected:
            raise PackError(
                f"the pack is not for this model: the {what} differs",
                location=Location(pack.path),
                found=str(found),
                expected=str(expected),
            )


def _calibrated(
    layer: PackLayer, best: list[Threshold] | None, drop_encoder: bool, n_tokens: int
) -> PackLayer:
    if best is None:
        return layer
    layer = replace(layer, thresholds=np.array([each.value for each in best], np.float32))
    if not drop_encoder:
        return layer
    d_sae = len(layer.full_enc) if layer.full_enc is not None else layer.d_sae
    layer = replace(
        layer, gate=_without_encoder(layer.gate), d_sae=d_sae, full_enc=None, full_enc_bias=None
    )
    if layer.gate is not GateKind.THRESHOLD:
        return layer
    worst = min(range(len(best)), key=lambda i: best[i].f1)
    note = (
        f"thresholds stand in for the top-{layer.k}: over {n_tokens} tokens the worst is feature "
        f"{layer.ids[worst]}, precision {best[worst].precision:.3f}, recall {best[worst].recall:.3f}"
    )
    return replace(layer, notes=(*layer.notes, note))


def _without_encoder(gate: GateKind) -> GateKind:
    return GateKind.THRESHOLD if gate is GateKind.TOPK else gate
