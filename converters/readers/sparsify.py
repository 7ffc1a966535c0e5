"""EleutherAI's sparsify: a folder ``layers.N`` with ``cfg.json`` and ``sae.safetensors``.

``encoder.weight`` (L, d), ``encoder.bias`` (L,), ``W_dec`` (L, d), ``b_dec`` (d,). ``topk(relu(h') , k)``
with ``h' = (h - b_dec) @ encoder.weight.T + encoder.bias``; ``b_dec`` is not taken off where
``transcode`` is true. The hook point is only in the folder's name: a module's path, whose output is
meant, so ``layers.N`` is the output of block N, ``layers.N.mlp`` is not on the residual stream. From
the project's sources (``sparsify/sparse_coder.py``, ``fused_encoder.py``; package eai-sparsify 1.3).
"""

from __future__ import annotations

import re

from converters.features import ReadOptions
from converters.probe import Probe
from converters.readers.hooks import place_of
from converters.readers.stored_sae import RELU_AFTER_TOPK, Matrix, StoredSae
from scope_runtime.errors import UsageError
from scope_runtime.policy.model import GateKind

_MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.\d+(?:\.[\w.]+)?|embed_tokens")


class Sparsify:
    """See the module."""

    kind = "sparsify"

    def recognise(self, probe: Probe) -> str | None:
        """``encoder.weight`` and ``W_dec`` in safetensors; ``d_in`` and ``k`` in the configuration."""
        names, said = probe.names, probe.configuration.values
        if probe.type != "safetensors" or not {"encoder.weight", "W_dec", "b_dec"} <= names:
            return None
        return "encoder.weight and W_dec in the weights" if {"d_in", "k"} <= said.keys() else None

    def open(self, probe: Probe, options: ReadOptions) -> StoredSae:
        """The layer."""
        said, data = probe.configuration, probe.weights
        if said.flag("transcode", False) or "W_skip" in probe.names:
            said.fail("a transcoder: it reads one place and writes another", found="transcode")
        if said.text("activation") not in (None, "topk") or said.flag("signed", False):
            said.fail(
                "its activation function is not read",
                found=repr(said.text("activation") or "signed")[:80],
                expected="'topk'",
            )
        hook = probe.path.absolute().parent.name
        if _MODULE.fullmatch(hook):
            layer = place_of(hook, said)
        elif options.layer is not None:
            layer = options.layer
        else:
            said.fail(
                "the layer is not said",
                found=f"the folder {hook!r}",
                expected="a folder layers.N, or --layer",
            )
        enc = data.array("encoder.weight")
        d_sae, d_in = enc.shape[0], enc.shape[-1]
        said.expect("d_in", d_in)
        k = said.count("k")
        if options.k not in (None, k):
            raise UsageError("k differs from the set's own", found=str(options.k), expected=str(k))
        return StoredSae(
            layer=layer,
            gate=GateKind.TOPK,
            k=k,
            data=data,
            enc=Matrix(enc, transposed=False),
            dec=Matrix(data.array("W_dec"), transposed=False),
            bias=data.vector("encoder.bias", d_sae),
            kind=self.kind,
            input_offset=data.vector("b_dec", d_in),
            files=said.files,
            notes=(RELU_AFTER_TOPK,),
            hook_point=hook,
        )
