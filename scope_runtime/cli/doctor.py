"""``scope doctor``: what works on this machine and this model, shown rather than assumed."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scope_runtime.cli.options import GpuLayersOption, JsonOption, ThreadsOption
from scope_runtime.errors import HookError

if TYPE_CHECKING:
    from scope_runtime.llama.context import Context
    from scope_runtime.llama.probe import LayerProof

COST_ROUNDS = 4
COST_TOKENS = 12
WARM_UP_TOKENS = 2


def doctor(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="FILE", help="The model (GGUF) to prove steering on."
        ),
    ] = None,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Time decoding with and without the hook; always on a GPU."),
    ] = False,
    n_gpu_layers: GpuLayersOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which attach points work here, and prove the layer numbering on a model.

    The proof adds a direction after each block through the hook and through llama.cpp's own control
    vector: the logits must be equal bit for bit, and differ from those of the blocks beside it.

    \b
    Examples:
      scope doctor
      scope doctor --model model.gguf
      scope doctor --model model.gguf --n-gpu-layers -1 --json
    """
    found = machine()
    if model is not None:
        found |= _examine(model, n_gpu_layers, threads, time_it=cost or n_gpu_layers != 0)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print(found)
    wrong = [proof["layer"] for proof in found.get("layers", []) if not _sound(proof)]
    if wrong:
        raise HookError(
            "the layer numbering is not proved on this model; do not steer it",
            found=f"layers {wrong} wrong",
            expected="the same logits as llama.cpp's control vector at every layer",
        )


def machine() -> dict[str, Any]:
    """Versions, the hook's kernels and llama.cpp's own view of the CPU."""
    from scope_runtime.llama import library
    from scope_runtime.native import abi
    from scope_runtime.version import __version__

    llama = library.load()
    return {
        "scope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hook": abi.build_info(),
        "llama_cpp_python": llama.version,
        "llama_cpp": llama.system_info.strip(),
        "interposed": llama.interposed,
        "amx": llama.amx,
    }


def _examine(
    model: Path, n_gpu_layers: int, threads: int | None, *, time_it: bool
) -> dict[str, Any]:
    from scope_runtime.cli.progress import loading
    from scope_runtime.llama.context import Context, ContextOptions
    from scope_runtime.llama.probe import prove, prove_layers

    options = ContextOptions(n_ctx=256, n_gpu_layers=n_gpu_layers, n_threads=threads)
    with loading(f"loading {model.name}") as progress:
        context = Context(model, options, progress=progress)
    try:
        info = context.info
        proof = prove(context)
        layers = prove_layers(context)
        found: dict[str, Any] = {
            "model": {
                "file": str(model),
                "name": info.name,
                "architecture": info.architecture,
                "layers": info.n_layer,
                "width": info.n_embd,
                "quantization": info.quantization,
            },
            "attach": {
                "callback": proof.callback,
                "columns": proof.columns,
                "memory": proof.memory,
                "embedding_node": proof.embedding_node,
                "words": list(proof.words),
            },
            "layers": [asdict(layer) for layer in layers],
        }
        if time_it:
            found["decode_ms_per_token"] = _cost(context, layers)
    finally:
        context.close()
    return found


def _cost(context: Context, layers: list[LayerProof]) -> dict[str, float]:
    """Median time of one decoded token: no program, one hooked layer, every layer hooked."""
    import numpy as np

    from scope_runtime.llama.probe import add_blob, probe_tokens

    row = np.zeros(context.shape.n_embd, np.float32)
    middle = len(layers) // 2
    arms: dict[str, dict[int, Any]] = {
        "none": {},
        "one_layer": {middle: row},
        "all_layers": {layer.layer: row for layer in layers},
    }
    token = probe_tokens(context)[0]
    times: dict[str, list[float]] = {name: [] for name in arms}
    # In turns: a machine that is busy for a while is then busy for all of them.
    for _ in range(COST_ROUNDS):
        for name, rows in arms.items():
            times[name] += _decode_times(context, add_blob(context, rows), token)
    return {name: round(float(np.median(each)) * 1e3, 4) for name, each in times.items()}


def _decode_times(context: Context, blob: bytes, token: int) -> list[float]:
    context.live_hook.install(blob)
    context.live_hook.request_begin(0, 0, 1)
    times = []
    for position in range(WARM_UP_TOKENS + COST_TOKENS):
        started = time.perf_counter()
        context.decode([token], position)
        times.append(time.perf_counter() - started)
    context.live_hook.request_end(0)
    context.live_hook.drain()
    context.forget()
    return times[WARM_UP_TOKENS:]


def _sound(proof: dict[str, Any]) -> bool:
    return bool(
        proof["changes_logits"]
        and proof["differs_from_neighbours"]
        and proof["equals_control_vector"] is not False
    )


def _print(found: dict[str, Any]) -> None:
    print(f"scope            {found['scope']}, Python {found['python']}, {found['platform']}")
    print(f"native hook      {found['hook']}")
    print(f"llama-cpp-python {found['llama_cpp_python']}")
    print(f"llama.cpp        {found['llama_cpp']}")
    if found["amx"]:
        print("AMX              present: weights are not repacked, which would crash prompts here")
    if "model" not in found:
        print("\nGive --model FILE to prove steering on a model.")
        return
    model = found["model"]
    print(
        f"model            {model['file']}: {model['architecture']}, {model['layers']} blocks, "
        f"{model['width']} wide, {model['quantization']}"
    )
    print("\nAttach points")
    for line in found["attach"]["words"]:
        print(f"  {line}")
    print("\nLayers, each against llama.cpp's control vector")
    for line in _layer_lines(found["layers"]):
        print(f"  {line}")
    if "decode_ms_per_token" in found:
        cost = found["decode_ms_per_token"]
        print("\nDecoding, milliseconds a token (median)")
        print(
            f"  no rule {cost['none']:.2f}, one layer {cost['one_layer']:.2f}, "
            f"every layer {cost['all_layers']:.2f}"
        )


def _layer_lines(layers: list[dict[str, Any]]) -> list[str]:
    """Runs of layers with the same finding, a line each."""
    runs: list[tuple[int, int, str]] = []
    for proof in layers:
        words = _words(proof)
        if runs and runs[-1][2] == words:
            runs[-1] = (runs[-1][0], proof["layer"], words)
        else:
            runs.append((proof["layer"], proof["layer"], words))
    return [
        f"{first if first == last else f'{first} to {last}'}: {words}"
        for first, last, words in runs
    ]


def _words(proof: dict[str, Any]) -> str:
    if not proof["changes_logits"]:
        return "WRONG: a direction added here changes nothing"
    if proof["equals_control_vector"] is False:
        return "WRONG: not the layer that llama.cpp calls by this number"
    if not proof["differs_from_neighbours"]:
        return "WRONG: the same as the layer beside it"
    if proof["equals_control_vector"] is None:
        return "proved: acts, and apart from its neighbours (llama.cpp has no control vector here)"
    return "proved: the same logits, bit for bit"
