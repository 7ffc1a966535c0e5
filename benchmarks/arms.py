"""The arms of the overhead benchmark: contexts on one model that differ in what is attached."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from scope_runtime.compile import compile_policy
from scope_runtime.llama.context import Context, ContextOptions
from scope_runtime.llama.probe import prove
from scope_runtime.packs import PackLayer, PackModel, write_pack
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.model import GateKind
from scope_runtime.types import ModelShape

N_FEATURES = 8
DOSE = 0.02
"""Length of a decoder direction: the steered model must still be a model."""

BASE = "no hook"
ARMS = (
    BASE,
    "no hook again",
    "empty program",
    "8 features, 1 layer",
    "8 features, every layer",
    "control vector, every layer",
    "Python callback, every layer",
)
SLOW_ARM = ARMS[-1]


class Arm:
    """One context, timed by the same two calls in every arm.

    Args:
        ctx: the llama_context.
        context: the runtime's context around it, for arms with a hook.
    """

    def __init__(
        self, name: str, api: Any, ctx: Any, context: Context | None = None, keep: object = None
    ) -> None:
        self.name = name
        self._api, self._ctx, self._context, self._keep = api, ctx, context, keep
        self._memory = api.llama_get_memory(ctx)
        self._n_requests = 0
        self._position = 0

    def begin(self, n_prompt: int) -> None:
        """Empties the context's memory and opens a request."""
        self._position = 0
        if self._context is None:
            self._api.llama_memory_clear(self._memory, True)
            return
        self._context.forget()
        self._n_requests += 1
        self._context.live_hook.request_begin(0, self._n_requests, n_prompt)

    def end(self) -> None:
        """Closes the request and empties the event ring."""
        if self._context is not None:
            self._context.live_hook.request_end(0)
            self._context.live_hook.drain()

    def decode(self, batch: Any, tokens: Sequence[int]) -> float:
        """Seconds that one decode of the next tokens takes; logits of the last one are wanted."""
        n = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, int(i == n - 1)
        batch.n_tokens = n
        start = time.perf_counter()
        code = self._api.llama_decode(self._ctx, batch)
        if self._context is not None:
            self._context.live_hook.end_ubatch()
        self._api.llama_synchronize(self._ctx)
        seconds = time.perf_counter() - start
        if code != 0:
            raise RuntimeError(f"{self.name}: llama_decode failed with code {code}")
        self._position += n
        return seconds

    def logits(self, n_vocab: int) -> NDArray[np.float32]:
        pointer = self._api.llama_get_logits_ith(self._ctx, -1)
        return np.ctypeslib.as_array(pointer, (n_vocab,)).copy()


class Bench:
    """All arms on one model. Close it, or use it as a context manager."""

    def __init__(self, model: Path, folder: Path, n_ctx: int, n_threads: int) -> None:
        options = ContextOptions(n_ctx, n_ctx, n_ctx, n_threads=n_threads)
        self._owner = Context(model, options)
        self._api = self._owner.llama.api
        self._hooked: list[Context] = []
        self._plain: list[Any] = []
        self.n_vocab, self.version = self._owner.n_vocab, self._owner.llama.version
        self.batch = self._api.llama_batch_init(n_ctx, 0, 1)
        shape = self._owner.shape
        sae = RandomFeatures(shape.n_layer, shape.n_embd)
        sae.write(folder / "pack.gguf", shape.architecture)
        middle, every = [shape.n_layer // 2], list(range(shape.n_layer))
        callback = sae.python_callback(self._api)
        self.arms = {
            arm.name: arm
            for arm in (
                self._plain_arm(ARMS[0]),
                self._plain_arm(ARMS[1]),
                self._hooked_arm(ARMS[2], folder, shape, []),
                self._hooked_arm(ARMS[3], folder, shape, middle),
                self._hooked_arm(ARMS[4], folder, shape, every),
                self._vector_arm(ARMS[5], sae),
                self._plain_arm(ARMS[6], callback),
            )
        }

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._api.llama_batch_free(self.batch)
        for ctx in self._plain:
            self._api.llama_free(ctx)
        for context in (*self._hooked, self._owner):
            context.close()

    def _plain_arm(self, name: str, callback: Any = None) -> Arm:
        """A context made with the same options as the runtime's, with no hook."""
        options = self._owner.options
        params = self._api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = options.n_ctx
        params.n_threads = params.n_threads_batch = options.n_threads
        params.n_seq_max, params.offload_kqv, params.no_perf = 1, False, True
        if callback is not None:
            params.cb_eval = callback
        ctx = self._api.llama_init_from_model(self._owner._model, params)
        if not ctx:
            raise RuntimeError(f"{name}: llama.cpp makes no context")
        self._plain.append(ctx)
        return Arm(name, self._api, ctx, keep=callback)

    def _vector_arm(self, name: str, sae: RandomFeatures) -> Arm:
        """What llama.cpp does by itself: the features' summed directions, added at every token."""
        arm = self._plain_arm(name)
        data = np.ascontiguousarray(sae.dec.sum(axis=1)[1:])
        n_layer, n_embd = sae.dec.shape[0], sae.dec.shape[2]
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        code = self._api.llama_set_adapter_cvec(
            self._plain[-1], pointer, data.size, n_embd, 1, n_layer - 1
        )
        if code != 0:
            raise RuntimeError(f"llama_set_adapter_cvec: {code}")
        return arm

    def _hooked_arm(self, name: str, folder: Path, shape: ModelShape, layers: list[int]) -> Arm:
        context = Context(self._owner.info.path, self._owner.options, weights=self._owner)
        self._hooked.append(context)
        prove(context)
        path = folder / f"mute-{len(layers)}-layers.yaml"
        path.write_text(yaml.safe_dump(_policy(layers)))
        context.live_hook.install(compile_policy(load_policy(path), shape).blob)
        return Arm(name, self._api, context._ctx, context)


class RandomFeatures:
    """Eight random features at every layer, about half of which fire at a token.

    Attributes:
        enc: encoder rows, (n_layer, 8, n_embd); no bias.
        dec: directions, (n_layer, 8, n_embd).
    """

    def __init__(self, n_layer: int, n_embd: int) -> None:
        rng = np.random.default_rng(1)
        size = (n_layer, N_FEATURES, n_embd)
        scale = np.float32(n_embd**-0.5)
        self.enc = rng.standard_normal(size, dtype=np.float32) * scale
        self.dec = rng.standard_normal(size, dtype=np.float32) * scale * np.float32(DOSE)

    def write(self, path: Path, architecture: str) -> None:
        n_layer, n, n_embd = self.enc.shape
        bias = np.zeros(n, np.float32)
        layers = [
            PackLayer(i, np.arange(n), ("",) * n, self.enc[i], bias, self.dec[i], GateKind.RELU)
            for i in range(n_layer)
        ]
        write_pack(path, PackModel(architecture, n_layer, n_embd), layers)

    def python_callback(self, api: Any) -> Any:
        """What most people write today: an eval callback in Python, numpy on the tensor's memory."""
        ggml = ctypes.CDLL("libggml-base.so.0")
        ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
        ggml.ggml_get_data_f32.argtypes = [ctypes.c_void_p]
        ggml.ggml_get_data_f32.restype = ctypes.POINTER(ctypes.c_float)
        ggml.ggml_nrows.argtypes, ggml.ggml_nrows.restype = [ctypes.c_void_p], ctypes.c_int64
        n_layer, _, n_embd = self.enc.shape
        layer_of = {f"l_out-{i}".encode(): i for i in range(n_layer)}

        def callback(tensor: int, ask: bool, user: object) -> bool:
            layer = layer_of.get(ggml.ggml_get_name(tensor))
            if ask or layer is None:
                return layer is not None
            rows = ggml.ggml_nrows(tensor)
            if rows:
                h = np.ctypeslib.as_array(ggml.ggml_get_data_f32(tensor), (rows, n_embd))
                h -= np.maximum(h @ self.enc[layer].T, 0) @ self.dec[layer]
            return True

        return api.ggml_backend_sched_eval_callback(callback)


def _policy(layers: list[int]) -> dict[str, Any]:
    features = {
        f"f-{layer}-{i}": {"pack": "pack.gguf", "layer": layer, "id": i}
        for layer in layers
        for i in range(N_FEATURES)
    }
    rules = [
        {"name": f"mute-{layer}", "mute": [f"f-{layer}-{i}" for i in range(N_FEATURES)]}
        for layer in layers
    ]
    return {
        "apiVersion": "scope/v1",
        "kind": "SteeringPolicy",
        "metadata": {"name": f"mute-{len(layers)}-layers"},
        "spec": {"features": features, "rules": rules},
    }
