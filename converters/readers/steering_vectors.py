"""steering-vectors: what people save of its ``SteeringVector`` with ``torch.save``.

The library has no format of its own. Read are a dictionary ``{layer: tensor}``, which is the field
``layer_activations``, and a dictionary of the fields, ``layer_activations`` and ``layer_type``. A
layer is a 0-based block; ``layer_type`` must be ``decoder_block``, whose output is steered. An object of
the class itself cannot be read without running its pickle, so it is refused. From the project's
sources (``steering_vectors/steering_vector.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.features import ReadOptions, Vectors
from converters.probe import Probe
from converters.readers.torch_file import as_float32, check_tensor
from converters.readers.vector_files import fail, make_vectors


class SteeringVectors:
    """See the module."""

    kind = "steering-vectors"

    def recognise(self, probe: Probe) -> str | None:
        """A .pt file of tensors by layer, or of the fields."""
        if probe.type != "pt" or not isinstance(probe.values, dict) or not probe.values:
            return None
        if "layer_activations" in probe.values:
            return "layer_activations in a .pt file"
        layers = all(isinstance(key, int) and not isinstance(key, bool) for key in probe.values)
        return "a .pt file of tensors by layer" if layers else None

    def open(self, probe: Probe, options: ReadOptions) -> Vectors:
        """The directions."""
        values, path = probe.values, probe.path
        kind = values.get("layer_type", "decoder_block")
        if kind != "decoder_block":
            fail(
                path,
                "not for the residual stream after a block",
                found=f"layer_type {kind!r}"[:80],
                expected="'decoder_block'",
            )
        layers: Any = values.get("layer_activations", values)
        if not isinstance(layers, dict):
            fail(path, "layer_activations is no table", found=type(layers).__name__)
        rows = {}
        for layer, tensor in layers.items():
            if not isinstance(layer, int) or isinstance(layer, bool):
                fail(path, "no layer", found=repr(layer)[:80], expected="a whole number")
            check_tensor(tensor, f"layer {layer}", path)
            if tensor.numel() > 1 << 20:
                fail(path, f"the direction of layer {layer} is too long", found=str(tensor.numel()))
            row = as_float32(tensor, f"the direction of layer {layer}", path)
            rows[layer] = np.array(row, dtype=np.float32)
        return make_vectors(path, self.kind, rows)
