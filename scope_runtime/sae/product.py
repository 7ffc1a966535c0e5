"""Pre-activations of every latent: ggml's product of the encoder's rows with residuals, at F32's precision."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from scope_runtime.pack_types import F32Array
from scope_runtime.sae.encoder import WholeEncoder

BLOCK_BYTES = 2 << 20
"""About as many bytes of rows are held by each thread where they are converted to F32: what a cache holds."""
BATCH_TOKENS = {"F32": 96, "F16": 64, "BF16": 32}
"""From so many tokens on arithmetic is what takes the time, not reading the rows: then BLAS, in F32, is faster."""
_F16_STEP = 2.0**11  # what is left of a number behind F16's 11 bits is that much smaller
_CHECKED_ROWS = 64
_BLAS = threading.Lock()
_TOLERANCE = 1e-5  # of ||row|| ||h||: F32 sums are off by 1e-7 or less, F16 sums by 1e-3 and more


def plain_scores(encoder: WholeEncoder, h: F32Array, n_threads: int | None = None) -> F32Array:
    """Products with every row by numpy's BLAS in F32, (n_tokens, d_sae).

    Each thread takes block after block, converts it and multiplies it alone: none waits for another, as those of one
    product would wherever another process has a CPU.
    """
    from scope_runtime.llama.ggml import default_threads, to_f32

    out = np.empty((len(h), encoder.d_sae), np.float32)
    step = min(max(BLOCK_BYTES // (4 * encoder.width), 1), encoder.d_sae)
    todo: SimpleQueue[int] = SimpleQueue()
    for first in range(0, encoder.d_sae, step):
        todo.put(first)

    def work() -> None:
        block = np.empty((0 if encoder.type == "F32" else step, encoder.width), np.float32)
        with suppress(Empty):
            while True:
                first = todo.get_nowait()
                rows = encoder.rows[first : first + step]
                if encoder.type != "F32":
                    to_f32(rows, encoder.type, block[: len(rows)])
                    rows = block[: len(rows)]
                np.matmul(h, rows.T, out=out[:, first : first + len(rows)])

    n = min(n_threads or default_threads(), todo.qsize())
    # The limit is for the whole process, so one may set it and take it back at a time.
    with _BLAS, _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(n) as threads:
        for done in [threads.submit(work) for _ in range(n)]:
            done.result()
    return out


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


class Product:
    """Multiplies residuals with one encoder.

    A product with one token takes as long as reading the rows, so they are read as they are stored.
    ggml would round residuals to the rows' own type, which costs more than a top-k gate forgives; so
    they are handed over as two (F16) or three (BF16) numbers of that type each, which together hold an
    F32's bits. The rows are still read once. Batches wait for arithmetic instead, and two or three
    products of it are too many: their rows are converted to F32 on the way.

    Args:
        encoder: rows, (d_sae, width).
        n_threads: all CPUs by default.
    """

    def __init__(self, encoder: WholeEncoder, n_threads: int | None = None) -> None:
        from scope_runtime.llama.ggml import Matrix

        self.encoder, self.n_threads = encoder, n_threads
        rows = encoder.rows
        # A row that is not aligned, as in no file that is known, is numpy's business.
        fits = rows.flags.c_contiguous and rows.flags.aligned
        self._matrix = Matrix(rows, encoder.type) if fits else None
        self._trusted = encoder.type == "F32"

    def __call__(self, h: F32Array) -> F32Array:
        """Products with every row, without bias, (n_tokens, d_sae).

        Args:
            h: residuals, finite, (n_tokens, width).
        """
        if self._matrix is None or len(h) >= BATCH_TOKENS[self.encoder.type]:
            return plain_scores(self.encoder, h, self.n_threads)
        scores = self._by_ggml(h)
        if not self._trusted and len(h):
            if not self._is_precise(h, scores):
                self._matrix = None
                return plain_scores(self.encoder, h, self.n_threads)
            self._trusted = True
        return scores

    def _by_ggml(self, h: F32Array) -> F32Array:
        if self._matrix is None:
            raise AssertionError("asked after it was given up")
        columns, factors = split(h, self.encoder.type)
        out = self._matrix.times(columns, n_threads=self.n_threads)
        if len(columns) == len(h):
            return out
        parts = out.reshape(-1, len(h), self.encoder.d_sae)
        for part, factor in zip(parts, factors, strict=True):
            np.multiply(part, factor, out=part)
        scores: F32Array = parts[-1]
        for part in parts[-2::-1]:  # the small ones first
            scores += part
        return scores

    def _is_precise(self, h: F32Array, scores: F32Array) -> bool:
        """Whether this CPU's kernel sums 16-bit products in F32, as not every one does."""
        rows = self.encoder.take(slice(0, _CHECKED_ROWS)).astype(np.float64)
        wide = h.astype(np.float64)
        room = np.linalg.norm(wide, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
        off = np.abs(wide @ rows.T - scores[:, : len(rows)])
        # What is not finite is the rows' own doing, and found by who uses the scores.
        return bool(np.all(~(off > _TOLERANCE * room)))


def split(h: F32Array, type: str) -> tuple[npt.NDArray[Any], list[F32Array]]:
    """Residuals as columns of a type, and what each run of n_tokens columns counts for.

    Returns:
        columns (n_parts * n_tokens, width), and per part a factor for each token, (n_tokens, 1);
        the sum of the parts times their factors is ``h``.
    """
    one = np.ones((len(h), 1), np.float32)
    if type == "F16":
        # Scaled to within 1, where F16 neither overflows nor loses what is small beside the rest.
        exponent = np.frexp(np.abs(h).max(axis=1, keepdims=True, initial=0.0))[1]
        scaled = np.ldexp(h, -exponent)
        high = scaled.astype(np.float16)
        low = ((scaled - high) * np.float32(_F16_STEP)).astype(np.float16)
        scale = np.ldexp(one, exponent)
        return np.concatenate([high, low]), [scale, scale / np.float32(_F16_STEP)]
    if type == "BF16":
        parts, rest = [], h
        for _ in range(3):  # 8 bits each, an F32's 24 together
            part = (rest.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
            parts.append((part.view(np.uint32) >> 16).astype(np.uint16))
            rest = rest - part
        return np.concatenate(parts), [one, one, one]
    return h, [one]
