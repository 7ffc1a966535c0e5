"""Llama Scope: a folder with ``hyperparams.json`` and ``checkpoints/final.safetensors``.

``encoder.weight`` (d_sae, d_model), ``decoder.weight`` (d_model, d_sae), ``encoder.bias``,
``decoder.bias``. JumpReLU with one threshold for all features. Under ``norm_activation:
dataset-wise`` the encoder sees ``s * h``, with ``s = sqrt(d_model) / dataset_average_activation_norm.in``
(the decoder's output is divided by it again); the published threshold is in the units of h, so that
s times it is what pre-activations are compared with (the set's authors, in SAELens' pull request
483). ``sparsity_include_decoder_norm`` compares pre-activations times the norm of the direction.
From the published files and SAELens' loader (``llama_scope_sae_huggingface_loader``, version 6.54).
"""

from __future__ import annotations

import math

from converters.features import ReadOptions
from converters.probe import Configuration, Probe
from converters.readers.hooks import place_of
from converters.readers.stored_sae import Matrix, StoredSae
from scope_runtime.policy.model import GateKind


class LlamaScope:
    """See the module."""

    kind = "llama-scope"

    def recognise(self, probe: Probe) -> str | None:
        """``hook_point_in`` and ``d_model`` in the configuration; encoder and decoder weights."""
        said = probe.configuration.values
        if probe.type != "safetensors" or not {"hook_point_in", "d_model"} <= said.keys():
            return None
        if not {"encoder.weight", "decoder.weight"} <= probe.names:
            return None
        return (
            "hook_point_in in the configuration, encoder.weight and decoder.weight in the weights"
        )

    def open(self, probe: Probe, options: ReadOptions) -> StoredSae:
        """The layer."""
        said, data = probe.configuration, probe.weights
        hook = said.text("hook_point_in") or ""
        layer = place_of(hook, said)
        if said.text("hook_point_out") not in (None, hook):
            said.fail("a transcoder: it reads one place and writes another", found=repr(hook)[:80])
        if said.text("act_fn") not in (None, "jumprelu"):
            said.fail(
                "its activation function is not read",
                found=repr(said.text("act_fn"))[:80],
                expected="'jumprelu'",
            )
        for key in ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder"):
            if said.flag(key, False):
                said.fail("an option that is not read", found=key)
        enc = data.array("encoder.weight")
        d_sae, d_model = enc.shape[0], enc.shape[-1]
        said.expect("d_model", d_model)
        said.expect("d_sae", d_sae)
        scale = _input_scale(said, d_model)
        threshold = said.number("jump_relu_threshold")
        if threshold is None:
            said.fail("jump_relu_threshold is missing")
        norms = said.flag("sparsity_include_decoder_norm", False)
        return StoredSae(
            layer=layer,
            gate=GateKind.THRESHOLD,
            k=None,
            data=data,
            enc=Matrix(enc, transposed=False),
            dec=Matrix(data.array("decoder.weight", (d_model, d_sae)), transposed=True),
            bias=data.vector("encoder.bias", d_sae),
            kind=self.kind,
            input_scale=scale,
            thresholds=threshold * scale,
            dec_scale=1 / scale,
            decoder_norms=norms,
            files=said.files,
            hook_point=hook,
            base_model=said.text("model_name"),
        )


def _input_scale(said: Configuration, d_model: int) -> float:
    normalised = said.text("norm_activation") or "dataset-wise"
    if normalised in ("inference", "none", "no-norm"):
        return 1.0
    if normalised != "dataset-wise":
        said.fail(
            "its encoder depends on the token, so no row of an encoder gives its activations",
            found=f"norm_activation {normalised!r}"[:80],
            expected="'dataset-wise'",
        )
    norm = said.part("dataset_average_activation_norm").number("in")
    if norm is None:
        said.fail("dataset_average_activation_norm.in is missing")
    return math.sqrt(d_model) / norm
