"""What a file is, told from what is in it: a feature pack, a control vector, a model, an SAE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from converters.readers.qwen_scope import QwenScopeLayer, QwenScopeSet
from scope_runtime.errors import Location, PackError
from scope_runtime.files import Progress, cached_sha256, open_regular, read_exactly
from scope_runtime.gguf_check import read_header
from scope_runtime.llama.checks import check_model, model_digest
from scope_runtime.packs import ARCHITECTURE as FEATURE_PACK
from scope_runtime.packs import FeaturePack, layer_name, read_pack
from scope_runtime.vectors import ARCHITECTURE as CONTROL_VECTOR
from scope_runtime.vectors import read_control_vector

MAX_SHOWN_CHARACTERS = 200


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


def inspect_file(path: str | Path, progress: Progress | None = None) -> Inspection:
    """Say what a file or folder is, from its content.

    Args:
        path: a GGUF file, an SAE layer (``.pt``) or a folder of them.
        progress: called while the digest of a large file is made.

    Raises:
        PackError: it is none of these, or a damaged one.
        ModelError: it is a model that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return _set(path)
    with open_regular(path, PackError) as file:
        start = bytes(read_exactly(file, 0, 4))
        architecture = None
        if start == b"GGUF":
            header = read_header(file, str(path), PackError)
            architecture = header.values.get("general.architecture")
    if architecture == FEATURE_PACK:
        return _pack(read_pack(path))
    if architecture == CONTROL_VECTOR:
        return _vector(path)
    if start == b"GGUF":
        return _model(path, progress)
    if start == b"PK\x03\x04":
        return _sae(path, progress)
    raise PackError(
        "neither a GGUF file nor a .pt file",
        location=Location(str(path)),
        found=f"{start!r} at the start",
    )


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


def _sae(path: Path, progress: Progress | None) -> Inspection:
    match = re.match(r"layer(\d{1,4})\.", path.name)
    sae = QwenScopeLayer(path, int(match[1]) if match else 0, None, width=None, d_sae=None)
    k = None
    if (path.parent / "config.json").exists():
        k = QwenScopeSet(path.parent).k if match else None
    facts = (
        ("layer", match[1] if match else "not said"),
        ("features", str(sae.d_sae)),
        ("width", str(sae.width)),
        ("gate", f"top-{k}" if k else "top-k, k not said"),
        ("hook point", "output of the block"),
        ("tensors", ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in sae.tensors())),
        ("sha256", cached_sha256(path, PackError, progress=progress)),
    )
    return Inspection(str(path), "Qwen-Scope SAE of one layer", facts)


def _set(path: Path) -> Inspection:
    sae_set = QwenScopeSet(path)
    facts = (
        ("trained on", sae_set.base_model or "not said"),
        ("layers", ", ".join(map(str, sae_set.layers))),
        ("model's layers", str(sae_set.n_layer or "not said")),
        ("gate", f"top-{sae_set.k}" if sae_set.k else "top-k, k not said"),
        ("hook point", "output of the block"),
    )
    return Inspection(str(path), "Qwen-Scope SAE set", _shortened(facts))


def _shortened(facts: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (key, value if len(value) <= MAX_SHOWN_CHARACTERS else value[:MAX_SHOWN_CHARACTERS] + " …")
        for key, value in facts
    )
