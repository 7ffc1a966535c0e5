"""CAST (IBM's activation-steering): a ``.svec`` file of JSON.

``{"model_type": …, "directions": {"N": [numbers]}, "explained_variances": {"N": number}}``; N is a
0-based block, whose output the direction was found in and is added to. From the project's sources
(``activation_steering/steering_vector.py``, ``leash_layer.py``).
"""

from __future__ import annotations

from converters.features import ReadOptions, Vectors
from converters.probe import Probe
from converters.readers.vector_files import as_row, fail, make_vectors


class Svec:
    """See the module."""

    kind = "svec"

    def recognise(self, probe: Probe) -> str | None:
        """A JSON object with model_type and directions."""
        said = probe.json
        found = isinstance(said, dict) and {"model_type", "directions"} <= said.keys()
        return "model_type and directions in a JSON file" if found else None

    def open(self, probe: Probe, options: ReadOptions) -> Vectors:
        """The directions."""
        said, path = probe.json, probe.path
        model, directions = said["model_type"], said["directions"]
        if not isinstance(model, str) or not isinstance(directions, dict):
            fail(path, "model_type is no text, or directions is no table")
        rows = {}
        for layer, values in directions.items():
            if not (layer.isascii() and layer.isdigit() and len(layer) <= 4):
                fail(path, "no layer", found=repr(layer)[:80], expected="a whole number")
            if int(layer) in rows:
                fail(path, "a layer is there twice", found=repr(layer))
            rows[int(layer)] = as_row(values, path, layer)
        return make_vectors(path, self.kind, rows, model if model.isprintable() else None)
