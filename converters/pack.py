"""From a set of SAEs to a feature pack: the rows asked for, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from converters.features import (
    FeatureRequest,
    ReadOptions,
    SaeLayer,
    SaeSet,
    Vectors,
    by_layer,
    ids_of,
)
from converters.hub import HubSet
from converters.licence import find_licence
from converters.load import open_source
from converters.models import architecture_of
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import Progress, cached_sha256
from scope_runtime.llama.checks import ModelInfo, check_model
from scope_runtime.pack_types import FeaturePack, PackLayer, PackModel, layer_name
from scope_runtime.packs import read_pack, write_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.version import __version__

Report = Callable[[str], Progress | None]
"""Told what is being done now; gives back whom to tell how far it has come."""


def _quiet(_: str) -> None:
    return None


def convert_pack(
    sae_dir: str | Path,
    features: Sequence[FeatureRequest],
    out: str | Path,
    *,
    exact_gate_layers: Sequence[int] = (),
    architecture: str | None = None,
    model: str | Path | None = None,
    k: int | None = None,
    digests: bool = True,
    report: Report = _quiet,
    options: ReadOptions | None = None,
    n_layer: int | None = None,
) -> FeaturePack:
    """Make a feature pack of some features of an SAE set.

    Args:
        sae_dir: the set: a folder, a file, or a repository of the hub, as `converters.load` has it.
        features: what is wanted; each once.
        out: the pack to be written, replaced if it exists.
        exact_gate_layers: layers whose whole encoder goes into the pack, so that the gate is the
            SAE's own top-k. In the others a ReLU stands in, and the pack says so. SAEs with another
            gate than top-k are exact as they are.
        architecture: llama.cpp's name of the model, unless ``model`` is given.
        model: a GGUF file of the model; gives architecture, layers and width, and must fit the set.
        k: of the top-k, where the set has no configuration.
        digests: whether to record SHA-256 of the SAE files (each is read once, then remembered).
        report: told what is being done.
        options: what else the set does not say.
        n_layer: blocks of the model, where neither the set nor ``model`` says it.

    Returns:
        The pack, read back from ``out``.

    Raises:
        PackError: the set or a feature of it cannot be used.
        UsageError: something must be said that was not.
    """
    wanted = by_layer(tuple(features))
    if not wanted:
        raise UsageError("no feature is asked for", hint="Name some with --feature LAYER:ID=label")
    stray = sorted(set(exact_gate_layers) - set(wanted))
    if stray:
        raise UsageError(
            "an exact gate for a layer of which no feature is asked for",
            found=layer_name(stray[0]),
            expected="one of " + ", ".join(layer_name(each) for each in wanted),
        )
    options = replace(options or ReadOptions(), k=k) if k is not None else options
    sae_set = open_source(sae_dir, options=options, layers=tuple(wanted))
    if isinstance(sae_set, Vectors):
        raise UsageError(
            "steering vectors have no features",
            location=Location(str(sae_dir)),
            found=sae_set.kind,
            expected="an SAE",
        )
    info = check_model(model) if model is not None else None
    layers: list[PackLayer] = []
    saes: list[SaeLayer] = []
    for number, requests in wanted.items():
        report(f"layer {layer_name(number)}")
        sae = sae_set.open(number)
        saes.append(sae)
        layers.append(_layer(sae, requests, exact=number in exact_gate_layers))
    pack_model = _model(sae_set, layers, architecture, n_layer, info)
    provenance = _provenance(sae_set, saes)
    if digests:
        for name, file in _files(sae_set, saes).items():
            progress = report(f"digest of {file.name}")
            provenance[f"sha256.{name}"] = cached_sha256(file, PackError, progress=progress)
    report(f"writing {Path(out).name}")
    write_pack(out, pack_model, layers, provenance)
    return read_pack(out)


def _layer(sae: SaeLayer, requests: tuple[FeatureRequest, ...], *, exact: bool) -> PackLayer:
    topk = sae.gate is GateKind.TOPK
    if topk and sae.k is None:
        raise UsageError(
            "k of the top-k gate is not known: the set has no config.json, or none with k",
            location=Location(str(sae.file.parent)),
            hint="Give it with --k",
        )
    if exact and not topk:
        raise UsageError(
            f"the gate of layer {layer_name(sae.layer)} is exact without the whole encoder",
            found=str(sae.gate),
        )
    rows = sae.rows(ids_of(requests))
    full_enc, full_enc_bias = sae.encoder() if exact else (None, None)
    notes = sae.notes
    if topk and not exact:
        notes = (
            f"top-{sae.k} gate without the full encoder: relu stands in, and a feature can be "
            f"active where the SAE would not have chosen it among its {sae.k}",
        )
    return PackLayer(
        layer=sae.layer,
        ids=rows.ids,
        labels=tuple(each.label for each in requests),
        enc=rows.enc,
        enc_bias=rows.enc_bias,
        dec=rows.dec,
        gate=GateKind.RELU if topk and not exact else sae.gate,
        k=sae.k,
        thresholds=rows.thresholds,
        full_enc=full_enc,
        full_enc_bias=full_enc_bias,
        d_sae=sae.d_sae,
        notes=notes,
    )


def _model(
    sae_set: SaeSet,
    layers: Sequence[PackLayer],
    architecture: str | None,
    n_layer: int | None,
    info: ModelInfo | None,
) -> PackModel:
    width = layers[0].width
    if n_layer not in (None, sae_set.n_layer) and sae_set.n_layer is not None:
        raise UsageError(
            "the number of layers differs from the set's own",
            found=str(n_layer),
            expected=str(sae_set.n_layer),
        )
    n_layer = sae_set.n_layer or n_layer
    if info is None:
        architecture = architecture or architecture_of(sae_set.base_model)
        if architecture is None or n_layer is None:
            what = "architecture" if architecture is None else "number of layers"
            raise UsageError(
                f"the model's {what} is not known",
                location=Location(str(sae_set.path)),
                hint="Give a GGUF file of the model with --model, or "
                + (
                    "its name in llama.cpp with --architecture"
                    if what == "architecture"
                    else "its number with --layers"
                ),
            )
        return PackModel(architecture, n_layer, width, sae_set.base_model)
    checks = (
        ("architecture", architecture, info.architecture),
        ("number of layers", n_layer, info.n_layer),
        ("width", width, info.n_embd),
    )
    for what, found, expected in checks:
        if found is not None and found != expected:
            raise PackError(
                f"the SAEs are not of this model: the {what} differs",
                location=Location(info.path),
                found=str(expected),
                expected=str(found),
            )
    return PackModel(info.architecture, info.n_layer, info.n_embd, sae_set.base_model or info.name)


def _provenance(sae_set: SaeSet, saes: Sequence[SaeLayer]) -> dict[str, str]:
    name = sae_set.path.resolve().name
    provenance = {
        "source": sae_set.base_model or name,
        "sae.kind": ", ".join(sorted({sae.kind for sae in saes})),
        "sae.set": name,
        "tool": f"scope-runtime {__version__}",
    }
    for sae in saes:
        provenance[f"sae.hook.{layer_name(sae.layer)}"] = sae.hook_point
    if isinstance(sae_set, HubSet):
        provenance["hub.repository"] = sae_set.repository
        provenance["hub.commit"] = sae_set.commit
        provenance["sae.set"] = sae_set.repository
    licence = find_licence([sae_set.path, *(sae.file.parent for sae in saes)])
    return provenance | ({"licence": licence} if licence is not None else {})


def _files(sae_set: SaeSet, saes: Sequence[SaeLayer]) -> dict[str, Path]:
    """The files that the pack is made of, by names that a key can have, each apart."""
    root = sae_set.path if sae_set.path.is_dir() else sae_set.path.parent
    files = {file for sae in saes for file in (sae.file, *sae.files)}
    named = {}
    for file in sorted(files):
        below = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        name = re.sub(r"[^a-z0-9_.]", "_", below.as_posix().lower().replace("/", "."))
        named[re.sub(r"\.{2,}", ".", name).strip(".")] = file
    return named
