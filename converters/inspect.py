"""What a file is, told from what is in it: a feature pack, a control vector, a model, an SAE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from converters.features import ReadOptions, SaeLayer, SaeSet, Vectors
from converters.licence import find_licence
from converters.load import open_source
from converters.readers.qwen_scope import QwenScopeLayer, QwenScopeSet
from scope_runtime.errors import PackError
from scope_runtime.files import Progress, cached_sha256, open_regular, read_exactly
from scope_runtime.gguf_check import read_header
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.packs import ARCHITECTURE as FEATURE_PACK
from scope_runtime.packs import FeaturePack, layer_name, read_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.vectors import ARCHITECTURE as CONTROL_VECTOR
from scope_runtime.vectors import read_control_vector

MAX_SHOWN_CHARACTERS = 200
_LAYER_NAME = re.compile(r"layer(0|[1-9][0-9]{0,3})\.sae\.pt")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        kind: in words.
        facts: pairs of name and value, in the order to be shown.
        features: of a feature pack, one row each: layer, id, label, gate; else empty.
        notes: sentences on what is not exact.
    """

    path: str
    kind: str
    facts: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, int, str, str], ...] = ()
    notes: tuple[str, ...] = ()


def inspect_file(
    path: str | Path, progress: Progress | None = None, options: ReadOptions | None = None
) -> Inspection:
    """Say what a file or folder is, from its content.

    Args:
        path: a pack, a model, or whatever `converters.load` opens.
        progress: called while the digest of a large file is made.
        options: what the files do not say.

    Raises:
        PackError: it is none of these, or a damaged one.
        ModelError: it is a model that cannot be used.
    """
    if not str(path).startswith("hf:") and not Path(path).is_dir():
        path = Path(path)
        with open_regular(path, PackError) as file:
            architecture = None
            start = bytes(read_exactly(file, 0, 4))
            if start == b"GGUF":
                header = read_header(file, str(path), PackError)
                architecture = header.values.get("general.architecture")
                projects = header.values.get("glp.mode") not in (None, "add")
        if architecture == FEATURE_PACK:
            return _pack(read_pack(path))
        if architecture == CONTROL_VECTOR and not projects:
            return _vector(path)
        if start == b"GGUF" and architecture not in (None, CONTROL_VECTOR, "glp"):
            return _model(path, progress)
        if options is None and _LAYER_NAME.match(path.name) is None and start == b"PK\x03\x04":
            options = ReadOptions(layer=0)  # it need not say its layer to be looked at
    opened = open_source(path, options=options)
    if isinstance(opened, Vectors):
        return _vectors(opened)
    if len(opened.layers) == 1 and not isinstance(opened, QwenScopeSet):
        return _sae(path, opened, opened.open(opened.layers[0]), progress)
    return _set(path, opened)


def _pack(pack: FeaturePack) -> Inspection:
    model = pack.model
    rows = tuple(
        (layer_name(layer.layer), int(id), label, gate_words(pack, layer.layer))
        for layer in pack.layers.values()
        for id, label in zip(layer.ids.tolist(), layer.labels, strict=True)
    )
    facts = (
        ("model", f"{model.architecture}, {model.layers} layers of width {model.width}"),
        ("trained on", model.name or "not said"),
        ("features", str(len(rows))),
        ("calibrated", _calibrated(pack)),
        ("sha256", pack.digest),
        *((key, value) for key, value in pack.provenance),
    )
    notes = tuple(
        f"layer {layer_name(layer.layer)}: {note}"
        for layer in pack.layers.values()
        for note in layer.notes
    )
    return Inspection(pack.path, "feature pack", _shortened(facts), rows, notes)


def gate_words(pack: FeaturePack, layer: int) -> str:
    """The gate of a layer of a pack as people read it: ``topk 50``, ``relu``."""
    one = pack.layers[layer]
    exact = one.full_enc is not None and one.gate == "topk"
    return f"{one.gate} {one.k}" if exact else str(one.gate)


def _calibrated(pack: FeaturePack) -> str:
    done = [layer_name(each.layer) for each in pack.layers.values() if each.stats is not None]
    if not done:
        return "no"
    return "yes" if len(done) == len(pack.layers) else "layers " + ", ".join(done)


def _vector(path: Path) -> Inspection:
    vector = read_control_vector(path)
    facts = (
        ("layers", ", ".join(map(str, vector.layers))),
        ("width", str(vector.width)),
        ("made for", vector.model_hint or "not said"),
        ("sha256", vector.digest),
        *vector.metadata,
    )
    return Inspection(str(path), "control vector", _shortened(facts))


def _model(path: Path, progress: Progress | None) -> Inspection:
    info = check_model(path)
    facts = (
        ("architecture", info.architecture),
        ("name", info.name or "not said"),
        (
            "layers",
            f"{info.n_layer}" + (f" and {info.n_mtp_layers} MTP" if info.n_mtp_layers else ""),
        ),
        ("width", str(info.n_embd)),
        ("types", info.quantization),
        ("bytes", str(info.file_bytes)),
        ("sha256", model_digest(info, progress=progress)),
    )
    return Inspection(str(path), "model", _shortened(facts))


def _vectors(vectors: Vectors) -> Inspection:
    facts = (
        ("layers", ", ".join(map(layer_name, vectors.layers))),
        ("width", str(vectors.width)),
        ("operation", vectors.operation),
        ("strength", f"{vectors.alpha:g}" if vectors.alpha is not None else "not said"),
        ("made for", vectors.model_hint or "not said"),
        ("sha256", vectors.digest),
        *vectors.metadata,
    )
    return Inspection(str(vectors.path), f"{vectors.kind} steering vectors", _shortened(facts))


def _sae(path: str | Path, sae_set: SaeSet, sae: SaeLayer, progress: Progress | None) -> Inspection:
    qwen = isinstance(sae, QwenScopeLayer)
    named = not qwen or _LAYER_NAME.match(sae.file.name)
    tensors = ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in sae.tensors())
    facts = (
        ("trained on", sae.base_model or "not said"),
        ("layer", layer_name(sae.layer) if named else "not said"),
        ("features", str(sae.d_sae)),
        ("width", str(sae.width)),
        ("gate", _gate(sae)),
        ("hook point", sae.hook_point),
        ("tensors", tensors),
        ("sha256", cached_sha256(sae.file, PackError, progress=progress)),
        *_licence(sae_set, sae),
    )
    kind = "Qwen-Scope" if qwen else sae.kind
    return Inspection(str(path), f"{kind} SAE of one layer", _shortened(facts), notes=sae.notes)


def _set(path: str | Path, sae_set: SaeSet) -> Inspection:
    sae = sae_set.open(sae_set.layers[0])
    facts = (
        ("trained on", sae_set.base_model or "not said"),
        ("layers", ", ".join(map(layer_name, sae_set.layers))),
        ("model's layers", str(sae_set.n_layer or "not said")),
        ("gate", _gate(sae)),
        ("hook point", sae.hook_point),
        *_licence(sae_set, sae),
    )
    kind = "Qwen-Scope" if isinstance(sae, QwenScopeLayer) else sae_set.kind
    return Inspection(str(path), f"{kind} SAE set", _shortened(facts), notes=sae.notes)


def _gate(sae: SaeLayer) -> str:
    if sae.gate is not GateKind.TOPK:
        return str(sae.gate)
    return f"top-{sae.k}" if sae.k else "top-k, k not said"


def _licence(sae_set: SaeSet, sae: SaeLayer) -> tuple[tuple[str, str], ...]:
    text = find_licence([sae_set.path, sae.file.parent])
    return (("licence", text.strip()),) if text else ()


def _shortened(facts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, value if len(value) <= MAX_SHOWN_CHARACTERS else value[:MAX_SHOWN_CHARACTERS] + " …")
        for key, value in facts
    )
