"""Whole SAE layers at run time: every latent of a residual, exactly gated, from a pack or from published files."""

from scope_runtime.sae.active import Active
from scope_runtime.sae.encoder import WholeEncoder
from scope_runtime.sae.layer import FullLayer
from scope_runtime.sae.layers import SaeLayers
from scope_runtime.sae.texts import EncodedText, encode_texts

__all__ = ["Active", "EncodedText", "FullLayer", "SaeLayers", "WholeEncoder", "encode_texts"]
