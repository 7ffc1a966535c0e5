"""One model and one context of llama.cpp with our hook in it: decode, logits, text, memory. No policies here."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import HookError, ModelError, UsageError
from scope_runtime.llama import library
from scope_runtime.llama.checks import ModelInfo, check_model
from scope_runtime.llama.room import check_room, context_tokens
from scope_runtime.native.abi import ATTACH_COLUMNS
from scope_runtime.native.hook import Hook
from scope_runtime.types import ModelShape

MAX_THREADS = 512
"""That llama.cpp's own pool takes; with more it ends the process."""


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a context is made; None leaves llama.cpp's or the machine's default.

    Attributes:
        n_ctx: tokens of context, per sequence; None: see `context_tokens`.
        n_batch: most tokens of one decode call.
        n_ubatch: most tokens of one pass through the graph.
        n_seq_max: sequences that may live side by side.
        n_gpu_layers: blocks to offload; -1 is all.
        n_threads: CPU threads for single tokens and for batches.
        use_extra_bufts: llama.cpp's repacked weights; None: on, except where AMX would crash.

    Raises:
        UsageError: a value that llama.cpp would crash on, or take for another.
    """

    n_ctx: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_gpu_layers: int = 0
    n_threads: int | None = None
    use_extra_bufts: bool | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_ctx", 1, 2**31 - 1),
            ("n_batch", 1, 2**31 - 1),
            ("n_ubatch", 1, 2**31 - 1),
            ("n_seq_max", 1, 256),
            ("n_gpu_layers", -1, 2**31 - 1),
            ("n_threads", 1, MAX_THREADS),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(
                    f"{name} is out of range", found=str(value), expected=f"{low} to {high}"
                )


class Context:
    """An open model with one llama_context, every graph of which passes through ``hook``.

    Not thread-safe by itself: ``lock`` is held around each decode, so that a swap that must not fall into one can wait.

    Args:
        weights: another context of this file, whose weights this one reads too; to be closed after this one.
    """

    def __init__(
        self,
        path: str | Path,
        options: ContextOptions = ContextOptions(),
        *,
        progress: Callable[[float], None] | None = None,
        weights: Context | None = None,
    ) -> None:
        self.info: ModelInfo = check_model(path) if weights is None else weights.info
        self._weights = weights
        self.options = options
        self._n_tokens = context_tokens(self.info, options.n_ctx) * options.n_seq_max
        self.lock = threading.RLock()
        self.llama = library.load()
        self._api = self.llama.api
        if not (options.n_gpu_layers and self._api.llama_supports_gpu_offload()):
            check_room(self.info, self._n_tokens)
        self._model: Any = None
        self._vocab: Any = None
        self.n_vocab: int = 0
        self.shape = ModelShape(self.info.architecture, self.info.n_layer, self.info.n_embd)
        self._ctx: Any = None
        self._batch: Any = None
        self.hook: Hook | None = None
        try:
            self._open_model(progress)
            self._open_context()
        except BaseException:
            self.close()
            raise

    # -- life

    def _open_model(self, progress: Callable[[float], None] | None) -> None:
        if self._weights is not None:
            self._model, self._vocab = self._weights._model, self._weights._vocab
            self.n_vocab = self._weights.n_vocab
            return
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = self.options.n_gpu_layers
        extra = self.options.use_extra_bufts
        params.use_extra_bufts = extra if extra is not None else not self.llama.amx
        if progress is not None:
            report = progress

            def on_progress(done: float, user: object) -> bool:
                report(done)
                return True

            params.progress_callback = self._api.llama_progress_callback(on_progress)
        library.last_log_lines()
        self._model = self._api.llama_model_load_from_file(str(self.info.path).encode(), params)
        if not self._model:
            raise ModelError(
                f"llama.cpp cannot load {self.info.path}",
                found=library.last_log_lines() or "no reason given",
            )
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._api.llama_vocab_n_tokens(self._vocab))

    def _open_context(self) -> None:
        o = self.options
        self.hook = Hook(self.shape.n_embd, self.shape.n_layer)
        params = self._api.llama_context_default_params()
        params.n_ctx = self._n_tokens
        params.n_batch = min(o.n_batch, params.n_ctx)
        params.n_ubatch = min(o.n_ubatch, params.n_batch)
        params.n_seq_max = o.n_seq_max
        params.offload_kqv = o.n_gpu_layers != 0
        if o.n_threads is not None:
            params.n_threads = params.n_threads_batch = o.n_threads
        params.no_perf = True
        # Embeddings are pooled here: llama.cpp's own pooling wants a whole text in one ubatch.
        params.pooling_type = self._api.LLAMA_POOLING_TYPE_NONE
        params.cb_eval = ctypes.cast(self.hook.callback, self._api.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = self.hook.handle
        self._ctx = self._api.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise ModelError(
                f"llama.cpp cannot make a context for {self.info.path}",
                found=library.last_log_lines() or "no reason given",
                hint="A smaller n_ctx may fit into memory",
            )
        self.n_ctx = int(self._api.llama_n_ctx(self._ctx)) // o.n_seq_max
        self._n_batch, self._n_ubatch = int(params.n_batch), int(params.n_ubatch)
        self._memory = self._api.llama_get_memory(self._ctx)
        if self._memory:
            self.hook.bind_memory(self._memory)
        self._batch = self._api.llama_batch_init(self._n_batch, 0, 1)

    def close(self) -> None:
        """Frees everything, the hook last. Safe to call twice."""
        with self.lock:
            if self._batch is not None:
                self._api.llama_batch_free(self._batch)
                self._batch = None
            if self._ctx:
                self._api.llama_free(self._ctx)
                self._ctx = None
            if self.hook is not None:
                self.hook.close()
                self.hook = None
            if self._model and self._weights is None:
                self._api.llama_model_free(self._model)
            self._model = None

    @property
    def live_hook(self) -> Hook:
        if self.hook is None:
            raise UsageError("the runtime is closed")
        return self.hook

    # -- decode

    def decode(
        self,
        tokens: Sequence[int],
        first_position: int,
        *,
        sequence: int = 0,
        all_logits: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Runs tokens of one sequence through the model, in as many batches as they need.

        Returns:
            Logits (n_vocab,) of the last token, or with ``all_logits`` (n_tokens, n_vocab): copies.

        Raises:
            HookError: llama.cpp failed, or the hook saw residuals that it could not match to tokens.
        """
        hook = self.live_hook
        # Without the columns attach point the hook must be told what an ubatch holds, so one batch must be one ubatch.
        by_hand = not hook.attached & ATTACH_COLUMNS
        step = self._n_ubatch if by_hand else self._n_batch
        out: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            ends = start + len(part) == len(tokens)
            wanted = [int(all_logits or (ends and i == len(part) - 1)) for i in range(len(part))]
            positions = range(first_position + start, first_position + start + len(part))
            with self.lock:
                self._fill(part, positions, sequence, wanted)
                if by_hand:
                    hook.columns(part, positions, [sequence] * len(part), wanted)
                unmatched = hook.stats.n_unmatched
                code = self._api.llama_decode(self._ctx, self._batch)
                hook.end_ubatch()
                if code != 0:
                    raise HookError(
                        f"llama_decode failed with code {code}",
                        found=library.last_log_lines() or None,
                        hint="The context is full" if code == 1 else None,
                    )
                self._check_matched(unmatched)
                out += [self._logits(i) for i, want in enumerate(wanted) if want]
        return np.stack(out) if all_logits else out[-1]

    def decode_columns(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        output: Sequence[int],
    ) -> list[npt.NDArray[np.float32]]:
        """One batch with columns of several sequences; logits (n_vocab,) of each wanted column. At most n_batch."""
        if not self.live_hook.attached & ATTACH_COLUMNS and len(set(sequences)) > 1:
            raise HookError("several sequences in a batch need the columns attach point")
        with self.lock:
            self._decode_columns(tokens, positions, sequences, output)
            return [self._logits(i) for i, want in enumerate(output) if want]

    def _decode_columns(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int] | int,
        output: Sequence[int],
    ) -> None:
        self._fill(tokens, positions, sequences, output)
        hook = self.live_hook
        if not hook.attached & ATTACH_COLUMNS:
            of = [sequences] * len(tokens) if isinstance(sequences, int) else sequences
            hook.columns(tokens, positions, of, output)
        unmatched = hook.stats.n_unmatched
        code = self._api.llama_decode(self._ctx, self._batch)
        hook.end_ubatch()
        if code != 0:
            raise HookError(
                f"llama_decode failed with code {code}", found=library.last_log_lines() or None
            )
        self._check_matched(unmatched)

    def give_embeddings(self) -> None:
        """From here on ``embed`` works, and each batch brings what every token of it came to."""
        self._api.llama_set_embeddings(self._ctx, True)

    def embed(self, tokens: Sequence[int], first_position: int) -> npt.NDArray[np.float32]:
        """The normed residual behind the last block (n_tokens, n_embd_out) of one batch of sequence 0: a copy.

        Raises:
            HookError: llama.cpp failed, or the hook saw residuals that it could not match to tokens.
        """
        positions = range(first_position, first_position + len(tokens))
        with self.lock:
            self._decode_columns(tokens, positions, 0, [1] * len(tokens))
            pointer = self._api.llama_get_embeddings_ith(self._ctx, 0)
            return np.ctypeslib.as_array(pointer, (len(tokens), self.n_embd_out)).copy()

    def _check_matched(self, before: int) -> None:
        if self.live_hook.stats.n_unmatched != before:
            raise HookError(
                "the residuals' rows matched neither the tokens nor the wanted outputs, "
                "so nothing was steered there",
                hint="Run `scope doctor` on this model",
            )

    @property
    def n_embd_out(self) -> int:
        """Width of what ``embed`` gives: n_embd, except where the model projects it."""
        return int(self._api.llama_model_n_embd_out(self._model))

    @property
    def n_batch(self) -> int:
        """Most tokens of one decode call."""
        return self._n_batch

    def _fill(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int] | int,
        output: Sequence[int],
    ) -> None:
        batch = self._batch
        n = len(tokens)
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (n,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (n,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (n,))[:] = output
        for i in range(n):
            batch.seq_id[i][0] = sequences if isinstance(sequences, int) else sequences[i]
        batch.n_tokens = n

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        pointer = self._api.llama_get_logits_ith(self._ctx, index)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()

    # -- memory: through the hook's exports, so that its notes follow

    def forget(self, sequence: int = -1, first: int = 0, end: int = -1) -> bool:
        """Drops positions [first, end) of a sequence (-1: of all). False if this memory cannot drop a part."""
        with self.lock:
            if not self._memory:
                return True
            if sequence < 0 and first == 0 and end < 0:
                self.live_hook.llama_memory_clear(self._memory)
                return True
            return self.live_hook.llama_memory_seq_rm(self._memory, sequence, first, end)

    def shift(self, sequence: int, first: int, end: int, delta: int) -> None:
        """Moves positions [first, end) by delta."""
        with self.lock:
            if not self._api.llama_memory_can_shift(self._memory):
                raise ModelError("this model's memory cannot be shifted")
            self.live_hook.llama_memory_seq_add(self._memory, sequence, first, end, delta)

    def copy(self, source: int, target: int, first: int = 0, end: int = -1) -> None:
        """Makes positions [first, end) of one sequence belong to another too."""
        with self.lock:
            self.live_hook.llama_memory_seq_cp(self._memory, source, target, first, end)

    def save(self, sequence: int) -> bytes:
        """The sequence's KV as bytes."""
        with self.lock:
            size = self._api.llama_state_seq_get_size(self._ctx, sequence)
            buffer = (ctypes.c_uint8 * size)()
            n = self._api.llama_state_seq_get_data(self._ctx, buffer, size, sequence)
            return bytes(buffer[:n])

    def restore(self, sequence: int, state: bytes, n_positions: int) -> None:
        """Puts saved KV back; the hook marks those positions as computed under an unknown program."""
        with self.lock:
            buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            n = self._api.llama_state_seq_set_data(self._ctx, buffer, len(state), sequence)
            self.live_hook.memory_restored(sequence, n_positions)
            if n == 0:
                raise ModelError("llama.cpp refused the saved state")

    # -- control vector

    def set_control_vectors(self, vectors: npt.NDArray[np.float32] | None) -> None:
        """llama.cpp's own control vector: (n_layer - 1, n_embd) from layer 1 on, or None to clear."""
        with self.lock:
            self._api.llama_synchronize(self._ctx)
            n_embd, last = self.shape.n_embd, self.shape.n_layer - 1
            if vectors is None:
                code = self._api.llama_set_adapter_cvec(self._ctx, None, 0, n_embd, 1, last)
            else:
                data = np.ascontiguousarray(vectors, np.float32)
                if data.shape != (last, n_embd):
                    raise HookError("control vectors of the wrong shape", found=str(data.shape))
                code = self._api.llama_set_adapter_cvec(
                    self._ctx,
                    data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                    data.size,
                    n_embd,
                    1,
                    last,
                )
            if code != 0:
                raise HookError(f"llama.cpp refused the control vector with code {code}")

    # -- text

    def tokenize(self, text: str, *, special: bool, add_bos: bool = True) -> list[int]:
        """Token ids; ``special`` lets control tokens that are written out in the text count as such.

        Raises:
            UsageError: the text has code points that are no characters (half of a pair).
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the text is not Unicode text", found=str(error)) from error
        room = len(data) + 8
        while True:
            out = (ctypes.c_int32 * room)()
            n = self._api.llama_tokenize(self._vocab, data, len(data), out, room, add_bos, special)
            if n >= 0:
                return list(out[:n])
            room = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens as nothing, or with ``special`` written out."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def ends(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def token_text(self, which: str) -> str:
        """Text of the ``bos`` or ``eos`` token, empty when the vocabulary has none."""
        token = getattr(self._api, f"llama_vocab_{which}")(self._vocab)
        if token < 0:
            return ""
        return (self._api.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")

    def chat_template(self) -> str | None:
        text = self._api.llama_model_chat_template(self._model, None)
        return text.decode(errors="replace") if text else None

    def sample(self, chain: Any, index: int = -1) -> int:
        """A token drawn by a llama.cpp sampler chain from the logits of an output of the last batch."""
        return int(self._api.llama_sampler_sample(chain, self._ctx, index))

    def output_logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """Logits (n_vocab,) of an output of the last batch, by default the last: a copy."""
        return self._logits(index)

    def grammar_sampler(self, text: str) -> Any:
        """llama.cpp's grammar sampler with the rule ``root``; falsy where it cannot read the grammar."""
        return self._api.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")

    def control_texts(self) -> list[str]:
        """The texts of the vocabulary's control tokens, longest first: what a stranger must not write."""
        api, vocab = self._api, self._vocab
        texts = {
            self.piece(token, special=True).decode(errors="replace")
            for token in range(self.n_vocab)
            if api.llama_vocab_is_control(vocab, token)
        }
        return sorted(texts - {""}, key=lambda text: (-len(text), text))
