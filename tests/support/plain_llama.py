"""llama.cpp without Scope Runtime: the oracle for "bit-identical to no hook", and its own vectors.

Talks to `llama_cpp`'s low-level interface alone, so that nothing of the runtime can be in the way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Column:
    """One token of a batch: which sequence it belongs to and where it stands there."""

    token: int
    position: int
    sequence: int = 0


class PlainLlama:
    """A model and one context with nothing attached. Close it, or use it as a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_threads: int = 2,
    ) -> None:
        # Imported late: the runtime's hook must come before llama.cpp in a process that uses both.
        from llama_cpp import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        # With AMX llama.cpp crashes on repacked weights; elsewhere this changes nothing for F32.
        model_params.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx * n_seq_max, n_seq_max
        params.n_batch, params.n_ubatch = n_batch, n_ubatch
        params.n_threads = params.n_threads_batch = n_threads
        self._n_batch = n_batch
        self._ctx = llama_cpp.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise RuntimeError("llama.cpp makes no context")
        self.n_embd: int = llama_cpp.llama_model_n_embd(self._model)
        self.n_layer: int = llama_cpp.llama_model_n_layer(self._model)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(vocab)

    def __enter__(self) -> PlainLlama:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._api.llama_free(self._ctx)
        self._api.llama_model_free(self._model)

    def set_control_vector(self, directions: dict[int, NDArray[np.float32]]) -> None:
        """llama.cpp's own control vector: block to what is added to its output. Not block 0."""
        if 0 in directions:
            raise ValueError("llama.cpp's control vector does not reach block 0")
        data = np.zeros((self.n_layer - 1, self.n_embd), dtype=np.float32)
        for layer, direction in directions.items():
            data[layer - 1] = direction
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._api.llama_synchronize(self._ctx)
        status = self._api.llama_set_adapter_cvec(
            self._ctx, pointer, data.size, self.n_embd, 1, self.n_layer - 1
        )
        if status != 0:
            raise RuntimeError(f"llama_set_adapter_cvec: {status}")

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._ctx), True)

    def decode(self, columns: Sequence[Column]) -> Logits:
        """Decodes one batch; logits of every column, (n_columns, n_vocab)."""
        batch = self._api.llama_batch_init(len(columns), 0, 1)
        try:
            batch.n_tokens = len(columns)
            for i, column in enumerate(columns):
                batch.token[i] = column.token
                batch.pos[i] = column.position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = column.sequence
                batch.logits[i] = 1
            status = self._api.llama_decode(self._ctx, batch)
        finally:
            self._api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        pointer = self._api.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(pointer, (len(columns), self.n_vocab)).copy()

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits at every position of a fresh sequence, in batches of n_batch."""
        self.clear()
        columns = [Column(token, position) for position, token in enumerate(tokens)]
        starts = range(0, len(columns), self._n_batch)
        return np.concatenate([self.decode(columns[i : i + self._n_batch]) for i in starts])
