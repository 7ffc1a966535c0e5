"""Recordings: residuals of texts in a safetensors file, so that programs can be run without the model.

Tensors, t the text's number from 0, L a layer as `layer_name` writes it (``embedding``, ``0``, ``17``):

==================== ================= ===========================================
t.tokens             (n_tokens,)       I32
t.layer.L            (n_tokens, width) F16, the residual before any change
==================== ================= ===========================================

Metadata: ``scope.recording``, a JSON object of ``version``, ``model`` (the model file's SHA-256),
``texts`` (how many) and, where texts are prompts with answers, ``n_prompt`` (per text the tokens of its
prompt, or null). One key, because safetensors writes several in an order of chance. Every text has
the same layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, written_whole
from scope_runtime.pack_types import F32Array, check_finite, layer_name
from scope_runtime.policy.model import EMBEDDING

if TYPE_CHECKING:
    from scope_runtime.llama.capture import TextResiduals

KEY = "scope.recording"
VERSION = 1
MAX_TEXTS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class RecordedText:
    """One text: token ids, per layer its residuals (n_tokens, width) in F16, and where its answer begins.

    ``n_prompt`` is None where the recording does not tell a prompt from an answer.
    """

    tokens: tuple[int, ...]
    layers: dict[int, npt.NDArray[np.float16]] = field(repr=False)
    n_prompt: int | None = None

    def residual(self, layer: int) -> F32Array:
        """The residuals of one layer in F32, a copy that a program may change."""
        return self.layers[layer].astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a file holds; ``model`` is the SHA-256 of the model that read the texts."""

    path: str
    model: str
    texts: tuple[RecordedText, ...]


def write_recording(path: str | Path, model_sha256: str, texts: Iterable[TextResiduals]) -> None:
    """Writes a recording whole or not at all; the same input gives the same bytes.

    Raises:
        PackError: a residual is not finite or too large for F16, or the file cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    n_texts = 0
    prompts: list[int | None] = []
    for n_texts, text in enumerate(texts, 1):
        prompts.append(text.n_prompt)
        prefix = f"{n_texts - 1}"
        tensors[f"{prefix}.tokens"] = np.array(text.tokens, np.int32)
        for layer, h in sorted(text.layers.items()):
            with np.errstate(over="ignore"):
                half = h.astype(np.float16)
            check_finite(half, f"the residual of text {prefix} at layer {layer_name(layer)}")
            tensors[f"{prefix}.layer.{layer_name(layer)}"] = half
    if not n_texts:
        raise PackError("a recording without texts", location=Location(str(path)))
    about: dict[str, Any] = {"version": VERSION, "model": model_sha256, "texts": n_texts}
    if any(n is not None for n in prompts):
        about["n_prompt"] = prompts
    with written_whole(path, PackError) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(about)})


def read_recording(path: str | Path) -> Recording:
    """Reads a recording and checks all of it.

    Raises:
        PackError: no recording, a damaged one, or one of an unknown version.
    """
    with open_regular(path, PackError):
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as reason:
        _fail(path, "no safetensors file", found=str(reason)[:200])
    about = _about(path, metadata)
    by_text: dict[str, dict[str, Any]] = {str(number): {} for number in range(about["texts"])}
    for name, tensor in tensors.items():
        number, _, what = name.partition(".")
        if number not in by_text or not (what == "tokens" or what.startswith("layer.")):
            _fail(path, "a tensor has no place in a recording", found=repr(name[:80]))
        by_text[number][what] = tensor
    prompts = about.get("n_prompt") or [None] * len(by_text)
    texts = tuple(
        _text(path, number, parts, n_prompt)
        for (number, parts), n_prompt in zip(by_text.items(), prompts, strict=True)
    )
    if len({(tuple(text.layers), _width(text)) for text in texts}) != 1:
        _fail(path, "the texts differ in their layers")
    return Recording(str(path), about["model"], texts)


def _about(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(metadata.get(KEY, "null"))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("version") != VERSION:
        found = about.get("version") if isinstance(about, dict) else metadata.get(KEY)
        _fail(
            path, "not a recording of this version", found=repr(found)[:80], expected=str(VERSION)
        )
    if not isinstance(about.get("model"), str):
        _fail(path, "the model's digest is missing")
    count = about.get("texts")
    if type(count) is not int or not 1 <= count <= MAX_TEXTS:
        _fail(path, "the number of texts is absurd", found=repr(count)[:20])
    prompts = about.get("n_prompt")
    if prompts is not None and not (
        isinstance(prompts, list)
        and len(prompts) == count
        and all(n is None or type(n) is int for n in prompts)
    ):
        _fail(path, "the prompts' lengths are no list of one number a text")
    return about


def _text(
    path: str | Path, number: str, parts: dict[str, Any], n_prompt: int | None
) -> RecordedText:
    tokens = parts.pop("tokens", None)
    if tokens is None or tokens.dtype != np.int32 or tokens.ndim != 1:
        _fail(path, f"text {number} has no tokens")
    if n_prompt is not None and not 1 <= n_prompt <= len(tokens):
        _fail(
            path,
            f"text {number} has a prompt of another length",
            found=str(n_prompt),
            expected=f"1 to {len(tokens)}",
        )
    layers = {}
    for name, h in parts.items():
        shown = name.removeprefix("layer.")
        if shown != "embedding" and not (shown.isascii() and shown.isdigit() and len(shown) < 5):
            _fail(path, "no name of a layer", found=repr(shown[:40]))
        if h.dtype != np.float16 or h.ndim != 2 or len(h) != len(tokens):
            _fail(path, f"{name} is no F16 residual of {len(tokens)} tokens", found=str(h.shape))
        try:
            check_finite(h, f"text {number}: {name}")
        except PackError as error:
            error.location = Location(str(path))
            raise
        layers[EMBEDDING if shown == "embedding" else int(shown)] = h
    if not layers:
        _fail(path, f"text {number} has no residuals")
    return RecordedText(tuple(tokens.tolist()), dict(sorted(layers.items())), n_prompt)


def _width(text: RecordedText) -> frozenset[int]:
    return frozenset(h.shape[1] for h in text.layers.values())


def _fail(
    path: str | Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
