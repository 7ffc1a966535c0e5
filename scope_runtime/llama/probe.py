"""Proves, on the live context and before anything is served, that the hook sees and changes what it should.

``prove`` runs at every start (two or three decodes of a few tokens); ``prove_layers`` is the long form for
``scope doctor``: it compares the hook's layers with llama.cpp's own control vector, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scope_runtime.errors import HookError
from scope_runtime.llama.context import Context
from scope_runtime.native.abi import ATTACH_CALLBACK, ATTACH_COLUMNS, ATTACH_MEMORY
from scope_runtime.policy.model import EMBEDDING
from scope_runtime.probe_program import adding
from scope_runtime.program import FloatArray, Layout, serialise


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen to work on this model, here.

    Attributes:
        callback, columns, memory: the attach points of docs/how-it-works.md.
        embedding_node: name of the graph node before block 0, None where it is not known and so not steerable.
        layers: blocks whose output the hook was seen to read and change.
        words: one sentence per attach point, for people.
    """

    callback: bool
    columns: bool
    memory: bool
    embedding_node: str | None
    layers: tuple[int, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerProof:
    """One block against llama.cpp's control vector ``direction.N``: equal logits, and unequal to its neighbours'."""

    layer: int
    changes_logits: bool
    equals_control_vector: bool | None
    differs_from_neighbours: bool


def probe_tokens(context: Context) -> list[int]:
    """A few ordinary tokens of the vocabulary, the same every time."""
    rng = np.random.default_rng(0)
    return [int(t) for t in rng.integers(0, context.n_vocab, 4)]


def add_blob(context: Context, rows: dict[int, FloatArray]) -> bytes:
    """A program that adds one row per layer at every token: the probe, and the reference in doctor."""
    return adding(context.shape, rows)


def prove(context: Context) -> Proof:
    """Probes the attach points on a fresh context; leaves its memory empty and no program that acts.

    Raises:
        HookError: the hook is not called, the graph does not name every block's output, or a probe changed nothing.
    """
    hook = context.live_hook
    tokens = probe_tokens(context)
    n = len(tokens)
    zeros, positions = [0] * n, list(range(n))
    last_only = [0] * (n - 1) + [1]

    hook.record_names(True)
    if context.llama.interposed:
        hook.expect_columns(tokens, positions, zeros, last_only)
    plain = context.decode(tokens, 0)
    names = hook.names()
    hook.record_names(False)
    context.forget()

    seen = [int(name[6:]) for name in names if name.startswith("l_out-") and name[6:].isdigit()]
    wanted = list(range(context.shape.n_layer))
    if not hook.attached & ATTACH_CALLBACK or not names:
        raise HookError(
            "the hook's callback was not called while the model ran",
            hint="This llama.cpp cannot be steered from here; `scope doctor` says more",
        )
    if [layer for layer in dict.fromkeys(seen) if layer < context.shape.n_layer] != wanted:
        missing = sorted(set(wanted) - set(seen))
        raise HookError(
            f"this model family ({context.shape.architecture}) does not name every block's output l_out-N, so it "
            "cannot be steered",
            found=f"blocks {seen}",
            expected=f"blocks 0 to {wanted[-1]}" + (f"; missing {missing}" if missing else ""),
        )
    embedding = _embedding_node(names)
    hook.embedding_node(embedding)
    _prove_effect(context, tokens, plain, embedding is not None)

    attached = hook.attached
    columns = bool(attached & ATTACH_COLUMNS)
    return Proof(
        callback=True,
        columns=columns,
        memory=bool(attached & ATTACH_MEMORY),
        embedding_node=embedding,
        layers=tuple(wanted),
        words=_words(context, attached, embedding),
    )


def _embedding_node(names: list[str]) -> str | None:
    """The last candidate before block 0: in Gemma that is the scaled embedding, not the raw one."""
    before = names[: names.index("l_out-0")] if "l_out-0" in names else names
    candidates = [name for name in before if not name.startswith("l_out-")]
    return candidates[-1] if candidates else None


def _prove_effect(context: Context, tokens: list[int], plain: FloatArray, embedding: bool) -> None:
    """Adds to every hook point at once: each must be seen to act, and the logits must change."""
    hook = context.live_hook
    rng = np.random.default_rng(1)
    layers = ([EMBEDDING] if embedding else []) + list(range(context.shape.n_layer))
    rows = {layer: rng.standard_normal(context.shape.n_embd).astype(np.float32) for layer in layers}
    hook.install(add_blob(context, rows))
    hook.request_begin(0, 0, len(tokens))
    try:
        steered = context.decode(tokens, 0)
        measured = hook.measured(0, len(tokens) - 1, len(layers))
    finally:
        hook.request_end(0)
        context.forget()
        hook.install(serialise(Layout(context.shape.n_embd, context.shape.n_layer)))
        hook.drain()
    silent = [
        layer
        for number, layer in enumerate(layers)
        if measured is None or not measured.fired[number]
    ]
    if silent:
        raise HookError(f"the probe did not run at layers {silent}")
    if np.array_equal(steered, plain):
        raise HookError("the probe ran but the logits did not change: steering would be silent")


def _words(context: Context, attached: int, embedding: str | None) -> tuple[str, ...]:
    n = context.shape.n_layer
    words = [f"eval callback: works, blocks 0 to {n - 1}"]
    if attached & ATTACH_COLUMNS:
        words.append("columns: works, batches may mix requests")
    elif context.llama.interposed:
        words.append(
            "columns: the layout of this llama.cpp is not the known one; one request at a time"
        )
    else:
        words.append(
            "columns: not to be had, llama_cpp was imported before scope_runtime; one request at a time"
        )
    words.append(
        "memory: works, rollback and shift are followed"
        if attached & ATTACH_MEMORY
        else "memory: llama.cpp's own changes are not seen; the runtime's are"
    )
    words.append(
        f"embedding: works at node {embedding}"
        if embedding
        else "embedding: no known node before block 0, refused as a hook point"
    )
    return tuple(words)


def prove_layers(context: Context) -> list[LayerProof]:
    """For every block: adding a direction through the hook and through ``direction.N`` give the same bits.

    Block 0 has no control vector; there only the change itself is shown. Memory is left empty.
    """
    tokens = probe_tokens(context)
    rng = np.random.default_rng(2)
    row = rng.standard_normal(context.shape.n_embd).astype(np.float32)
    plain = logits_under(context, {}, tokens)
    hooked = {
        layer: logits_under(context, {layer: row}, tokens) for layer in range(context.shape.n_layer)
    }
    out = []
    for layer, logits in hooked.items():
        equal = None
        if layer >= 1:
            vectors = np.zeros((context.shape.n_layer - 1, context.shape.n_embd), np.float32)
            vectors[layer - 1] = row
            context.set_control_vectors(vectors)
            try:
                equal = np.array_equal(logits_under(context, {}, tokens), logits)
            finally:
                context.set_control_vectors(None)
        neighbours = [hooked[n] for n in (layer - 1, layer + 1) if n in hooked]
        out.append(
            LayerProof(
                layer=layer,
                changes_logits=not np.array_equal(plain, logits),
                equals_control_vector=equal,
                differs_from_neighbours=not any(np.array_equal(logits, n) for n in neighbours),
            )
        )
    return out


def logits_under(context: Context, rows: dict[int, FloatArray], tokens: list[int]) -> FloatArray:
    """The last token's logits with one row added per layer; memory and program are left empty."""
    hook = context.live_hook
    hook.install(add_blob(context, rows))
    hook.request_begin(0, 0, len(tokens))
    try:
        return context.decode(tokens, 0)
    finally:
        hook.request_end(0)
        context.forget()
        hook.install(serialise(Layout(context.shape.n_embd, context.shape.n_layer)))
        hook.drain()
