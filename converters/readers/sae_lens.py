"""SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``.

``W_enc`` (d_in, d_sae), ``W_dec`` (d_sae, d_in), ``b_dec`` (d_in,), ``b_enc`` (d_sae,); jumprelu adds
``threshold``; gated has ``b_gate``, ``b_mag``, ``r_mag`` and no ``b_enc``. The encoder's input is
``h - b_dec``, unless ``apply_b_dec_to_input`` is false. A gated SAE and a JumpReLU one come down to a
threshold per feature; batch-top-k SAEs are saved as jumprelu. ``rescale_acts_by_decoder_norm``
multiplies activations by the norms of the directions before the top-k. ``scaling_factor`` of older
files (``finetuning_scaling_factor``) multiplies activations before the decoder.

From version 6 on the hook point stands in ``metadata.hook_name``, before at the top level, there
``hook_point`` in the oldest. From SAELens' sources (``saes/*.py``, ``loading/pretrained_sae_loaders.py``,
version 6.54).
"""

from __future__ import annotations

import numpy as np

from converters.features import ReadOptions
from converters.probe import Configuration, Probe
from converters.readers.hooks import is_centred, place_of
from converters.readers.stored import File
from converters.readers.stored_sae import RELU_AFTER_TOPK, Matrix, StoredSae
from scope_runtime.errors import UsageError
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.model import EMBEDDING, GateKind

_GATES = {
    "standard": GateKind.RELU,
    "gated": GateKind.THRESHOLD,
    "jumprelu": GateKind.THRESHOLD,
    "topk": GateKind.TOPK,
}
_PER_TOKEN = {
    "constant_norm_rescale": "each token's residual is scaled to one length first",
    "layer_norm": "each token's residual is normalised first",
    "covariance_whitening": "the whitening is not in the file",
}


class SaeLens:
    """See the module."""

    kind = "sae-lens"

    def recognise(self, probe: Probe) -> str | None:
        """``cfg.json`` with d_in, d_sae and an architecture or a hook; W_enc and W_dec beside it."""
        said = probe.configuration.values
        known = {"architecture", "hook_name", "hook_point", "metadata"} & said.keys()
        if probe.type != "safetensors" or not {"d_in", "d_sae"} <= said.keys() or not known:
            return None
        if not {"W_enc", "W_dec"} <= probe.names:
            return None
        return "d_in and d_sae in the configuration, W_enc and W_dec in the weights"

    def open(self, probe: Probe, options: ReadOptions) -> StoredSae:
        """The layer."""
        said, data = probe.configuration, probe.weights
        about = said.part("metadata") if "metadata" in said.values else said
        hook = about.text("hook_name") or said.text("hook_name") or said.text("hook_point")
        layer = options.layer if hook is None else place_of(hook, said)
        if layer is None:
            said.fail("the hook point is not said", expected="hook_name, or --layer")
        _refuse(said, about)
        architecture = _architecture(said)
        enc, dec = data.array("W_enc"), data.array("W_dec")
        d_in = enc.shape[0]
        d_sae = enc.shape[-1]
        said.expect("d_in", d_in)
        said.expect("d_sae", d_sae)
        offset = data.vector("b_dec", d_in) if said.flag("apply_b_dec_to_input", True) else None
        gated = architecture == "gated"
        kwargs = about.part("model_from_pretrained_kwargs")
        model = about.text("model_name")
        return StoredSae(
            layer=layer,
            gate=_GATES[architecture],
            k=_k(said, options) if architecture == "topk" else None,
            data=data,
            enc=Matrix(enc, transposed=True),
            dec=Matrix(dec, transposed=False),
            bias=data.vector("b_mag" if gated else "b_enc", d_sae),
            kind=f"{self.kind} {architecture}",
            input_offset=offset,
            input_scale=_input_scale(said, about, options),
            centred=is_centred(kwargs, model),
            r_mag=data.vector("r_mag", d_sae) if gated else None,
            b_gate=data.vector("b_gate", d_sae) if gated else None,
            thresholds=data.vector("threshold", d_sae) if architecture == "jumprelu" else None,
            dec_scale=_decoder_scale(said, data, d_sae, options),
            decoder_norms=architecture == "topk"
            and said.flag("rescale_acts_by_decoder_norm", False),
            files=said.files,
            notes=_notes(architecture, layer, hook),
            hook_point=hook or "not said",
            base_model=model,
        )


def _refuse(said: Configuration, about: Configuration) -> None:
    if about.values.get("hook_head_index") is not None:
        said.fail(
            "trained on one attention head, not on the residual stream",
            found=f"hook_head_index {about.values['hook_head_index']!r}"[:80],
        )
    if said.text("reshape_activations") not in (None, "none"):
        said.fail("trained on reshaped activations", found=said.text("reshape_activations"))
    function = said.text("activation_fn") or said.text("activation_fn_str") or "relu"
    if function not in ("relu", "topk", "jumprelu"):
        said.fail("its activation function is not read", found=repr(function)[:80], expected="relu")
    normalised = said.values.get("normalize_activations")
    if isinstance(normalised, str) and normalised in _PER_TOKEN:
        said.fail(
            f"its encoder depends on the token: {_PER_TOKEN[normalised]}, so no row of an encoder "
            "gives its activations",
            found=f"normalize_activations {normalised!r}",
            expected="'none'",
        )
    if normalised not in (None, True, False, "none", "expected_average_only_in"):
        said.fail("normalize_activations is unknown", found=repr(normalised)[:80])


def _architecture(said: Configuration) -> str:
    architecture = said.text("architecture") or "standard"
    function = said.text("activation_fn") or said.text("activation_fn_str")
    if architecture == "standard" and function == "topk":  # before version 6
        return "topk"
    if "transcoder" in architecture:
        said.fail("a transcoder: it reads one place and writes another", found=repr(architecture))
    if architecture not in _GATES:
        said.fail(
            "its architecture is not read",
            found=repr(architecture)[:80],
            expected=", ".join(sorted(_GATES)),
        )
    return architecture


def _k(said: Configuration, options: ReadOptions) -> int | None:
    k = said.count("k") or said.part("activation_fn_kwargs").count("k")
    if k is not None and options.k not in (None, k):
        raise UsageError("k differs from the set's own", found=str(options.k), expected=str(k))
    return k or options.k


def _input_scale(said: Configuration, about: Configuration, options: ReadOptions) -> float:
    """A scaling by the average norm, the same for every token, can be folded if it is known."""
    normalised = said.values.get("normalize_activations")
    if normalised in (None, False, "none"):
        if options.input_scale is not None:
            raise UsageError("this SAE does not scale its input", found=str(options.input_scale))
        return 1.0
    scale = said.number("norm_scaling_factor") or about.number("norm_scaling_factor")
    scale = scale or options.input_scale
    if scale is None:
        said.fail(
            "it scales its input by the average norm of a data set, and the file does not say what "
            "that is",
            found=f"normalize_activations {normalised!r}",
            expected="norm_scaling_factor, or --input-scale",
        )
    return float(scale)


def _decoder_scale(
    said: Configuration, data: File, d_sae: int, options: ReadOptions
) -> F32Array | float:
    back = 1.0 / _input_scale(said, said.part("metadata"), options)
    name = next(
        (n for n in ("scaling_factor", "finetuning_scaling_factor") if n in data.arrays), None
    )
    if name is None:
        return back
    factors = data.vector(name, d_sae)
    if np.allclose(factors, 1):
        return back
    if not said.flag("finetuning_scaling_factor", False):
        data.fail("holds scaling factors that its configuration does not speak of", found=name)
    return (factors.astype(np.float64) * back).astype(np.float32)


def _notes(architecture: str, layer: int, hook: str | None) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if architecture == "topk":
        notes += (RELU_AFTER_TOPK,)
    if layer == EMBEDDING and hook == "hook_embed":
        notes += (
            "trained on token embeddings alone; a model that adds positions to them before block 0 "
            "is measured with these",
        )
    return notes
