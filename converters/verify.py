"""Whether a file does on a model what it says: not by reading it once more, but by running the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.calibrate import check_pack_fits
from converters.contrast import share
from converters.pack import Report
from converters.recipe import recipe_of
from converters.sources import is_pack
from converters.statistics import gated
from scope_runtime.errors import Location, PackError
from scope_runtime.llama.capture import capturing, residuals
from scope_runtime.llama.checks import ModelInfo, check_model
from scope_runtime.llama.context import Context
from scope_runtime.llama.probe import logits_under, probe_tokens
from scope_runtime.pack_types import F32Array, FeaturePack, PackLayer, layer_name
from scope_runtime.packs import read_pack
from scope_runtime.policy.model import GateKind, Op
from scope_runtime.program import DELTA_SCALE, NONE, OPS, Layout, serialise
from scope_runtime.vectors import ControlVector, read_control_vector

_GATES = {GateKind.NONE: 0, GateKind.RELU: 1, GateKind.THRESHOLD: 2, GateKind.TOPK: 3}
_INT32 = np.iinfo(np.int32)
TOLERANCE = 1e-4  # of the layer's largest activation: F32 sums in another order


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what, whether it holds, and what was found, in words."""

    what: str
    ok: bool
    words: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that was looked at in one file."""

    path: str
    kind: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all of it holds."""
        return all(check.ok for check in self.checks)


def verify(
    path: str | Path,
    model: str | Path,
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    report: Report = lambda _: None,
) -> Verification:
    """Opens a control vector or feature pack again and proves it on a model.

    A control vector: what llama.cpp would refuse is refused; the layers are those that its recipe
    says; for every layer the logits under llama.cpp's own ``direction.N`` equal, bit for bit, those
    of adding the same row to the output of block N. A pack: for every layer the hook measures there
    what its rows and gates give on the residuals of that block.

    Args:
        path: the file.
        model: a GGUF file.
        n_threads: CPU threads.
        n_gpu_layers: blocks to offload.
        report: told what is being done.

    Raises:
        PackError: the file is damaged, or not for this model.
        HookError: the model cannot be steered.
    """
    path = Path(path)
    report(f"reading {path.name}")
    opened: FeaturePack | ControlVector
    opened = read_pack(path) if is_pack(path) else read_control_vector(path)
    info = check_model(model)
    checks: list[Check] = []
    if isinstance(opened, ControlVector):
        _check_vector_fits(opened, info)
        checks += _recorded_layers(opened)
    else:
        check_pack_fits(opened, info)
    progress = report(f"loading {Path(model).name}")
    with capturing(
        model, n_ctx=64, n_threads=n_threads, n_gpu_layers=n_gpu_layers, progress=share(progress)
    ) as context:
        report("probing")
        if isinstance(opened, ControlVector):
            checks += _prove_vector(context, opened)
        else:
            checks += [_prove_layer(context, layer) for layer in opened.layers.values()]
    kind = "control vector" if isinstance(opened, ControlVector) else "feature pack"
    return Verification(str(path), kind, tuple(checks))


# -- control vectors


def _check_vector_fits(vector: ControlVector, info: ModelInfo) -> None:
    location = Location(vector.path)
    if vector.model_hint not in (None, info.architecture):
        raise PackError(
            "the vector is not for this model: the architecture differs",
            location=location,
            found=info.architecture,
            expected=vector.model_hint,
        )
    if vector.width != info.n_embd:
        raise PackError(
            "the vector is not for this model: the width differs",
            location=location,
            found=str(info.n_embd),
            expected=str(vector.width),
        )
    stray = [layer for layer in vector.layers if layer >= info.n_layer]
    if stray:  # llama.cpp leaves them out without a word
        raise PackError(
            f"direction.{stray[0]} has no block to act on",
            location=location,
            expected=f"1 to {info.n_layer - 1}",
        )


def _recorded_layers(vector: ControlVector) -> Iterator[Check]:
    recipe = recipe_of(vector)
    found = list(vector.layers)
    what = "layers as recorded"
    if recipe is None:
        yield Check(what, True, "no recipe: the file does not say which layers it is for")
        return
    wanted = recipe["layers"]
    if found == wanted:
        yield Check(what, True, "directions of layers " + ", ".join(map(str, found)))
        return
    apart = {a - b for a, b in zip(found, wanted, strict=False)}
    shifted = len(found) == len(wanted) and len(apart) == 1
    yield Check(
        what,
        False,
        (f"shifted by {apart.pop()}: " if shifted else "")
        + f"the file has directions of layers {', '.join(map(str, found))}, "
        + f"made for {', '.join(map(str, wanted))}",
    )


def _prove_vector(context: Context, vector: ControlVector) -> Iterator[Check]:
    tokens = probe_tokens(context)
    plain = logits_under(context, {}, tokens)
    shape = (context.shape.n_layer - 1, context.shape.n_embd)
    for layer, direction in vector.layers.items():
        # As llama.cpp's loader lays a file out: direction.N is row N - 1.
        data = np.zeros(shape, np.float32)
        data[layer - 1] = direction
        context.set_control_vectors(data)
        try:
            own = logits_under(context, {}, tokens)
        finally:
            context.set_control_vectors(None)
        hooked = logits_under(context, {layer: direction}, tokens)
        what = f"direction.{layer} acts on the output of block {layer}"
        if not direction.any():
            yield Check(what, False, "the direction is zero: it changes nothing")
        elif not np.array_equal(own, hooked):
            words = "llama.cpp's control vector and adding there give different logits"
            yield Check(what, False, words)
        elif np.array_equal(own, plain):
            yield Check(what, False, "the logits do not change: the direction is too short")
        else:
            change = float(np.abs(own - plain).max() / np.ptp(plain))
            yield Check(
                what, True, f"equal logits bit for bit; they move by {change:.3g} of their range"
            )


# -- packs


def _prove_layer(context: Context, layer: PackLayer) -> Check:
    """The hook's activations at this layer against the rows and gates on the captured residuals."""
    tokens = probe_tokens(context)
    [found] = residuals(context, [tokens], [layer.layer])
    _, wanted = gated(layer, found.layers[layer.layer])
    measured = _measured(context, layer, tokens)
    scale = max(float(np.abs(wanted).max()), 1.0)
    worst = float(np.abs(measured - wanted).max())
    n_on = int((wanted != 0).any(axis=0).sum())
    what = f"layer {layer_name(layer.layer)}: gate {layer.gate} of {len(layer.ids)} features"
    if not np.isfinite(measured).all():
        return Check(what, False, "activations that are not finite")
    if not layer.dec.any(axis=1).all():
        row = int(np.argmin(layer.dec.any(axis=1)))
        return Check(what, False, f"the direction of feature {layer.ids[row]} is zero")
    words = (
        f"measured as computed (largest difference {worst:.1e}); {n_on} on at {len(tokens)} tokens"
    )
    if worst > TOLERANCE * scale:
        return Check(what, False, f"the hook measures other activations: off by {worst:.3g}")
    return Check(what, True, words)


def _measured(context: Context, layer: PackLayer, tokens: list[int]) -> F32Array:
    """Each feature's activation at each token as the hook sees it, (n_tokens, n); nothing is changed."""
    hook = context.live_hook
    hook.install(_measuring_blob(context, layer))
    hook.request_begin(0, 0, len(tokens))
    try:
        context.decode(tokens, 0, all_logits=True)
        rows = [hook.measured(0, position, len(layer.ids)) for position in range(len(tokens))]
    finally:
        hook.request_end(0)
        context.forget()
        hook.install(serialise(Layout(context.shape.n_embd, context.shape.n_layer)))
        hook.drain()
    nothing = np.full(len(layer.ids), np.nan, np.float32)
    return np.stack([nothing if row is None else row.activation for row in rows])


def _measuring_blob(context: Context, layer: PackLayer) -> bytes:
    """A program that scales every feature of the layer by 1: all are measured, none is changed."""
    layout = Layout(context.shape.n_embd, context.shape.n_layer)
    n = len(layer.ids)
    encoder = NONE
    if layer.gate is GateKind.TOPK and layer.full_enc is not None:
        assert layer.full_enc_bias is not None
        layout.encoders.append(
            {
                "d_sae": len(layer.full_enc),
                "k": layer.k,
                "off_rows": layout.row(layer.full_enc),
                "off_bias": layout.row(layer.full_enc_bias),
            }
        )
        encoder = 0
    for i, id in enumerate(layer.ids.tolist()):
        layout.rules.append(
            {
                "op": OPS[Op.SCALE],
                "pos_from": _INT32.min,
                "pos_to": _INT32.max,
                "condition": NONE,
                "switch_on": NONE,
                "alert": NONE,
            }
        )
        layout.features.append(
            {
                "gate": _GATES[layer.gate],
                "encoder": encoder,
                "latent": id if encoder != NONE else NONE,
                "threshold": 0.0 if layer.thresholds is None else layer.thresholds[i],
                "bias": layer.enc_bias[i],
                "off_row": layout.row(layer.enc[i]),
            }
        )
        layout.deltas.append(
            {
                "rule": i,
                "kind": DELTA_SCALE,
                "feature": i,
                "rank": 1,
                "a": 0.0,
                "off_row": layout.row(layer.dec[i]),
            }
        )
    layout.points.append({"layer": layer.layer, "n_features": n, "first_delta": 0, "n_deltas": n})
    return serialise(layout)
