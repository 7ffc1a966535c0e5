"""Gemma Scope: ``params.npz``, and Gemma Scope 2: ``params.safetensors`` with ``config.json``.

``W_enc`` (d_model, d_sae), ``W_dec`` (d_sae, d_model), ``b_enc``, ``b_dec``, ``threshold``; Gemma Scope 2
and early files write ``w_enc`` and ``w_dec``. JumpReLU: ``h @ W_enc + b_enc`` where that is above the
threshold and above 0; ``b_dec`` is not taken off the input. ``scaling_factor``, where there is one,
multiplies activations before the decoder.

Gemma Scope says only in its folders' names which layer it is: ``layer_N/width_16k/average_l0_71`` is
the output of block N, ``embedding/…`` the token embeddings before Gemma multiplies them with
sqrt(d_model): the residual that a hook sees before block 0 is that much larger. MLP, attention and
transcoder SAEs lie in repositories of their own, or in folders that say so. Gemma Scope 2 says its
hook point in ``config.json`` (``hf_hook_point_in``), some folders only in their names. From the
published sets and SAELens' loaders for them (``loading/pretrained_sae_loaders.py``, version 6.54).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from converters.features import ReadOptions
from converters.probe import Probe
from converters.readers.hooks import place_of
from converters.readers.stored import File
from converters.readers.stored_sae import Matrix, StoredSae
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.model import EMBEDDING, GateKind

_LAYER_FOLDER = re.compile(r"layer_(0|[1-9]\d{0,3})(?:_.*)?")
_ELSEWHERE = re.compile(
    r"(?:^|[-_])(?:mlp|att|attn|attention|transcoders?|clt|crosscoders?)(?:$|[-_])", re.I
)


class GemmaScope:
    """See the module."""

    kind = "gemma-scope"

    def recognise(self, probe: Probe) -> str | None:
        """An npz of the five arrays; a safetensors file of them that is not SAELens' own."""
        names = {name.lower() for name in probe.names}
        if not {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"} <= names:
            return None
        if probe.type == "npz":
            return "an npz archive of encoder, decoder and thresholds"
        said = probe.configuration.values
        if probe.type == "safetensors" and "w_enc" in probe.names and "d_sae" not in said:
            return "w_enc, w_dec and threshold in a safetensors file"
        return None

    def open(self, probe: Probe, options: ReadOptions) -> StoredSae:
        """The layer."""
        data = probe.weights
        names = {("W" + name[1:] if name.startswith("w_") else name): name for name in data.arrays}
        enc, dec = data.array(names["W_enc"]), data.array(names["W_dec"])
        if len(enc.shape) != 2:
            data.fail("the encoder has an impossible shape", found=str(enc.shape))
        d_model, d_sae = enc.shape
        data.vector("b_dec", d_model)  # it moves only what is decoded; its shape is checked
        layer, hook, embedding = _place(probe, options)
        scale = math.sqrt(d_model) if embedding else 1.0
        return StoredSae(
            layer=layer,
            gate=GateKind.THRESHOLD,
            k=None,
            data=data,
            enc=Matrix(enc, transposed=True),
            dec=Matrix(dec, transposed=False),
            bias=data.vector("b_enc", d_sae),
            kind=self.kind + (" 2" if probe.type == "safetensors" else ""),
            input_scale=1 / scale,
            thresholds=data.vector("threshold", d_sae),
            dec_scale=_decoder_scale(data, d_sae, scale),
            files=probe.configuration.files,
            hook_point=hook,
            base_model=probe.configuration.text("model_name"),
        )


def _decoder_scale(data: File, d_sae: int, scale: float) -> F32Array | float:
    found = data.arrays.get("scaling_factor")
    if found is None:
        return scale
    if found.shape in ((), (1,)):
        return scale * data.scalar("scaling_factor")
    return (data.vector("scaling_factor", d_sae).astype(np.float64) * scale).astype(np.float32)


def _place(probe: Probe, options: ReadOptions) -> tuple[int, str, bool]:
    """Layer, hook point in words, and whether the residual must be scaled down to the embeddings."""
    said = probe.configuration
    hook = said.text("hf_hook_point_in")
    if hook is not None:
        if said.text("hf_hook_point_out") not in (None, hook):
            said.fail("a transcoder: it reads one place and writes another", found=repr(hook)[:80])
        return place_of(hook, said), hook, False
    folders = _folders(probe.path)
    elsewhere = next((each for each in folders if _ELSEWHERE.search(each)), None)
    if elsewhere is not None:
        probe.weights.fail(
            "not trained on the residual stream after a block", found=f"the folder {elsewhere!r}"
        )
    for folder in folders:
        if match := _LAYER_FOLDER.fullmatch(folder):
            return int(match[1]), f"output of block {match[1]}, by its folder", False
        if folder == "embedding":
            return EMBEDDING, "token embeddings, by its folder", True
    if options.layer is None:
        probe.weights.fail(
            "the layer is not said",
            found=f"the folder {probe.path.resolve().parent.name!r}",
            expected="a folder layer_N, or --layer",
        )
    return options.layer, "as it was given", False


def _folders(path: Path) -> list[str]:
    """Names of the folders around a file, from the inside out, up to the repository's in the cache."""
    return [each.name for each in list(path.absolute().parents)[:7]]
