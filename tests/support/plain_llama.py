"""llama.cpp without Scope Runtime: the oracle for "bit-identical to no hook", and its own vectors.

Talks to `llama_cpp`'s low-level interface alone, so that nothing of the runtime can be in the way. Run
as a program it decodes in a process that has never loaded the hook: ``python -m
tests.support.plain_llama model.gguf out.npy 3 1 4 1 5``.
"""

from __future__ import annotations

import ctypes
import sys
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
        n_threads: int = 1,
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
        self._memory = llama_cpp.llama_get_memory(self._ctx)
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

    # -- decode

    def decode(self, columns: Sequence[Column], wanted: Sequence[int] | None = None) -> Logits:
        """Decodes one batch; logits of the wanted columns (default: all), (n_wanted, n_vocab)."""
        wanted = range(len(columns)) if wanted is None else wanted
        batch = self._api.llama_batch_init(len(columns), 0, 1)
        try:
            batch.n_tokens = len(columns)
            for i, column in enumerate(columns):
                batch.token[i] = column.token
                batch.pos[i] = column.position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = column.sequence
                batch.logits[i] = int(i in wanted)
            status = self._api.llama_decode(self._ctx, batch)
        finally:
            self._api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        rows = [self._api.llama_get_logits_ith(self._ctx, i) for i in wanted]
        return np.stack([np.ctypeslib.as_array(row, (self.n_vocab,)).copy() for row in rows])

    def extend(self, tokens: Sequence[int], first_position: int, sequence: int = 0) -> Logits:
        """Decodes tokens of one sequence in batches of n_batch; logits of every one."""
        columns = [Column(t, first_position + i, sequence) for i, t in enumerate(tokens)]
        starts = range(0, len(columns), self._n_batch)
        return np.concatenate([self.decode(columns[i : i + self._n_batch]) for i in starts])

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits at every position of a fresh sequence."""
        self.clear()
        return self.extend(tokens, 0)

    # -- memory

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, True)

    def forget(self, sequence: int, first: int, end: int = -1) -> None:
        if not self._api.llama_memory_seq_rm(self._memory, sequence, first, end):
            raise RuntimeError("llama_memory_seq_rm")

    def shift(self, sequence: int, first: int, end: int, delta: int) -> None:
        self._api.llama_memory_seq_add(self._memory, sequence, first, end, delta)

    def copy(self, source: int, target: int, first: int = 0, end: int = -1) -> None:
        self._api.llama_memory_seq_cp(self._memory, source, target, first, end)

    def save(self, sequence: int) -> bytes:
        size = self._api.llama_state_seq_get_size(self._ctx, sequence)
        buffer = (ctypes.c_uint8 * size)()
        return bytes(
            buffer[: self._api.llama_state_seq_get_data(self._ctx, buffer, size, sequence)]
        )

    def restore(self, sequence: int, state: bytes) -> None:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not self._api.llama_state_seq_set_data(self._ctx, buffer, len(state), sequence):
            raise RuntimeError("llama_state_seq_set_data")


if __name__ == "__main__":
    with PlainLlama(Path(sys.argv[1])) as llama:
        np.save(sys.argv[2], llama.logits([int(token) for token in sys.argv[3:]]))
