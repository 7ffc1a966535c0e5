"""dictionary_learning: a folder with ``config.json`` and ``ae.pt``.

``config.json`` has ``trainer.dict_class``, and with it the arrays:

- AutoEncoder: ``encoder.weight`` (L, d), ``encoder.bias``, ``decoder.weight`` (d, L), ``bias`` (d,), which
  is taken off the input. Its loader scales directions to length 1 and the encoder to match, and so
  do we. AutoEncoderNew: ``decoder.bias`` instead, not taken off, no scaling.
- GatedAutoEncoder: no ``encoder.bias``; ``decoder_bias`` (taken off), ``r_mag``, ``gate_bias``, ``mag_bias``.
- AutoEncoderTopK, BatchTopKSAE: ``b_dec`` (taken off), ``k``, ``threshold`` (one number). The first takes
  the k largest of each token; the second, outside of training, what is above the threshold.
- MatryoshkaBatchTopKSAE: as BatchTopKSAE, but ``W_enc`` (d, L), ``b_enc``, ``W_dec`` (L, d).
- JumpReluAutoEncoder: ``W_enc`` (d, L), ``b_enc``, ``W_dec`` (L, d), ``b_dec`` (not taken off),
  ``threshold`` (L,).

``trainer.layer`` counts blocks from 0; ``buffer.io`` says whether their input or output was taken.
From the project's sources (``dictionary.py``, ``trainers/``, ``utils.py``).
"""

from __future__ import annotations

from converters.features import ReadOptions
from converters.probe import Configuration, Probe
from converters.readers.hooks import MAX_LAYER
from converters.readers.stored import File
from converters.readers.stored_sae import RELU_AFTER_TOPK, Matrix, StoredSae
from scope_runtime.errors import UsageError
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.model import GateKind

_CLASSES = {
    "AutoEncoder": GateKind.RELU,
    "AutoEncoderNew": GateKind.RELU,
    "GatedAutoEncoder": GateKind.THRESHOLD,
    "JumpReluAutoEncoder": GateKind.THRESHOLD,
    "BatchTopKSAE": GateKind.THRESHOLD,
    "MatryoshkaBatchTopKSAE": GateKind.THRESHOLD,
    "AutoEncoderTopK": GateKind.TOPK,
}
_OFFSETS = {
    "AutoEncoder": "bias",
    "GatedAutoEncoder": "decoder_bias",
    "BatchTopKSAE": "b_dec",
    "MatryoshkaBatchTopKSAE": "b_dec",
    "AutoEncoderTopK": "b_dec",
}


class DictionaryLearning:
    """See the module."""

    kind = "dictionary-learning"

    def recognise(self, probe: Probe) -> str | None:
        """``trainer.dict_class`` in the configuration, encoder and decoder in a .pt file."""
        if probe.type != "pt":
            return None
        trainer = probe.configuration.values.get("trainer")
        pairs = ({"encoder.weight", "decoder.weight"}, {"W_enc", "W_dec"})
        if not isinstance(trainer, dict) or "dict_class" not in trainer:
            return None
        if not any(pair <= probe.names for pair in pairs):
            return None
        return "trainer.dict_class in the configuration, encoder and decoder in a .pt file"

    def open(self, probe: Probe, options: ReadOptions) -> StoredSae:
        """The layer."""
        said, data = probe.configuration.part("trainer"), probe.weights
        name = said.text("dict_class") or ""
        if name not in _CLASSES:
            said.fail(
                "its dict_class is not read",
                found=repr(name)[:80],
                expected=", ".join(sorted(_CLASSES)),
            )
        gate = _CLASSES[name]
        layer, hook = _place(said, probe.configuration.part("buffer"))
        by_features = "encoder.weight" in data.arrays
        enc = data.array("encoder.weight" if by_features else "W_enc")
        dec = data.array("decoder.weight" if by_features else "W_dec")
        d_sae, width = enc.shape if by_features else enc.shape[::-1]
        said.expect("activation_dim", width)
        said.expect("dict_size", d_sae)
        gated = name == "GatedAutoEncoder"
        offset = _OFFSETS.get(name)
        bias = "mag_bias" if gated else "encoder.bias" if by_features else "b_enc"
        return StoredSae(
            layer=layer,
            gate=gate,
            k=_k(said, data, options) if gate is GateKind.TOPK else None,
            data=data,
            enc=Matrix(enc, transposed=not by_features),
            dec=Matrix(dec, transposed=by_features),
            bias=data.vector(bias, d_sae),
            kind=f"{self.kind} {name}",
            input_offset=data.vector(offset, width) if offset else None,
            r_mag=data.vector("r_mag", d_sae) if gated else None,
            b_gate=data.vector("gate_bias", d_sae) if gated else None,
            thresholds=_thresholds(data, name, d_sae),
            decoder_norms=name == "AutoEncoder",
            files=probe.configuration.files,
            notes=(RELU_AFTER_TOPK,) if gate is GateKind.TOPK else (),
            hook_point=hook,
            base_model=said.text("lm_name"),
        )


def _thresholds(data: File, name: str, d_sae: int) -> F32Array | float | None:
    if name == "JumpReluAutoEncoder":
        return data.vector("threshold", d_sae)
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = data.scalar("threshold")
        if threshold < 0:
            data.fail("its threshold was never set in training", found=f"{threshold:g}")
        return threshold
    return None


def _k(said: Configuration, data: File, options: ReadOptions) -> int | None:
    stored = data.metadata.get("k")
    k = said.count("k") or (int(stored) if stored is not None else None)
    if k is not None and stored is not None and k != int(stored):
        said.fail("k differs from the weights", found=str(k), expected=stored)
    if options.k not in (None, k) and k is not None:
        raise UsageError("k differs from the set's own", found=str(options.k), expected=str(k))
    return k or options.k


def _place(said: Configuration, buffer: Configuration) -> tuple[int, str]:
    layer = said.count("layer", least=0)
    name = said.text("submodule_name")
    if layer is None or layer > MAX_LAYER:
        said.fail("the layer is not said, or no model has it", found=repr(layer), expected="layer")
    if name is not None and not name.startswith(("resid_post", "resid_pre", "resid")):
        said.fail("not trained on the residual stream after a block", found=repr(name)[:80])
    io = buffer.text("io") or "out"
    if io not in ("in", "out"):
        said.fail("it maps a module's input to its output", found=f"io {io!r}"[:40])
    before = io == "in" or (name or "").startswith("resid_pre")
    return layer - before, name or f"{io}put of block {layer}"
