"""Control vectors in GGUF: llama.cpp's, which repeng and EasySteer write too, and GLP's.

``direction.N`` belongs to the output of block N (0-based, 1 and up) in all of them. repeng writes
``controlvector.model_hint`` and ``controlvector.layer_count``; EasySteer adds ``controlvector.method``
and numbers of its own. GLP (spec version 1) says in ``glp.mode`` what to do with the directions:
``add``, also where the key is absent, or ``project``, which takes the part along a direction out; any
other mode is fatal, and so is another ``glp.hook_point`` than the residual stream after the layer,
another rank than 1, or a digest of the directions (``glp.content_sha256``: their F32 bytes in
ascending order of layers) that does not hold. From repeng's ``extract.py``, EasySteer's
``steer/utils.py`` and GLP's published specification.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from converters.features import ReadOptions, Vectors
from converters.probe import Probe
from scope_runtime.errors import PackError
from scope_runtime.files import open_regular, sha256_of
from scope_runtime.gguf_check import Header, read_header
from scope_runtime.gguf_values import Keys
from scope_runtime.pack_types import F32Array
from scope_runtime.vectors import ARCHITECTURE, read_directions

_RESIDUAL = "residual_stream_post_layer"


class ControlVectors:
    """See the module."""

    kind = "control-vector"

    def recognise(self, probe: Probe) -> str | None:
        """A GGUF file that says so, or that holds directions and nothing else."""
        if probe.type != "gguf":
            return None
        with open_regular(probe.path, PackError) as file:
            header = read_header(file, str(probe.path), PackError)
        architecture = header.values.get("general.architecture")
        if architecture in (ARCHITECTURE, "glp"):
            return f"a GGUF file of the architecture {architecture}"
        directions = bool(header.tensors) and all(
            name.startswith("direction.") for name in header.tensors
        )
        return "a GGUF file of directions" if architecture is None and directions else None

    def open(self, probe: Probe, options: ReadOptions) -> Vectors:
        """The directions, all of them checked."""
        with open_regular(probe.path, PackError) as file:
            header = read_header(file, str(probe.path), PackError)
            layers = read_directions(file, header)
            digest = sha256_of(file)
        keys = Keys(header, PackError)
        is_glp = any(key.startswith("glp.") for key in header.values)
        operation, alpha = _glp(header, keys, layers) if is_glp else ("add", None)
        method = keys.optional_text(f"{ARCHITECTURE}.method")
        hint = keys.optional_text(f"{ARCHITECTURE}.model_hint")
        return Vectors(
            path=probe.path,
            kind="glp" if is_glp else f"easysteer {method}" if method else self.kind,
            digest=digest,
            layers=layers,
            operation=operation,
            alpha=alpha,
            model_hint=hint or keys.optional_text("general.base_model.0.name"),
            metadata=tuple((key, str(value)) for key, value in sorted(header.values.items())),
        )


def _glp(header: Header, keys: Keys, layers: Mapping[int, F32Array]) -> tuple[str, float | None]:
    mode = keys.optional_text("glp.mode") or "add"
    if mode not in ("add", "project"):
        keys.fail("glp.mode is unknown", found=repr(mode)[:80], expected="'add' or 'project'")
    for key, expected in (
        ("glp.hook_point", _RESIDUAL),
        ("glp.structure", "per-layer"),
    ):
        value = keys.optional_text(key)
        if value not in (None, expected):
            keys.fail(
                f"{key} is not one that is read", found=repr(value)[:80], expected=repr(expected)
            )
    if keys.optional_integer("glp.rank") not in (None, 1):
        keys.fail(
            "more than one direction a layer", found=f"glp.rank {header.values['glp.rank']}",
            expected="1",
        )  # fmt: skip
    said = keys.optional_text("glp.content_sha256")
    content = hashlib.sha256(b"".join(layers[layer].tobytes() for layer in sorted(layers)))
    if said is not None and said.lower() != content.hexdigest():
        keys.fail(
            "the directions are not those that were published",
            found=content.hexdigest(),
            expected=repr(said)[:80],
        )
    alpha = header.values.get("glp.alpha_default")
    if alpha is None:
        return mode, None
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha < 0:
        keys.fail("glp.alpha_default is no strength", found=repr(alpha)[:40], expected="0 or more")
    return mode, alpha
