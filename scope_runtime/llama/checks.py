"""What must hold of a model file before llama.cpp sees it.

llama.cpp answers a bad file with anything from a log line to a jump through a null pointer (F64
weights) or an abort (more prediction layers than blocks). Here each is one sentence, and says what
the file is if it is no model at all. Only headers are read: a 20 GB model takes as long as its
vocabulary.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from scope_runtime.errors import Location, ModelError
from scope_runtime.files import Progress, cached_sha256, open_regular
from scope_runtime.gguf_check import Header, read_header
from scope_runtime.gguf_types import F64
from scope_runtime.gguf_values import Keys
from scope_runtime.llama.asserted import TOKENS, check_asserted, is_asserted

MAX_SPLITS = 1024
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_IN_POLICY = "Name it in a policy, under features"
_TEXT_MODEL = "Give the text model itself"
_NO_MODEL = {  # by general.architecture or general.type: what it is, what to do
    "controlvector": ("a control vector", _IN_POLICY),
    "featurepack": ("a feature pack", _IN_POLICY),
    "clip": ("the image or audio encoder of a model (mmproj)", _TEXT_MODEL),
    "mmproj": ("the image or audio encoder of a model (mmproj)", _TEXT_MODEL),
    "adapter": ("a LoRA adapter", "Give the model that it adapts"),
    "imatrix": ("an importance matrix for quantization", None),
    "vocab": ("a vocabulary without weights", None),
}
_ENCODERS = frozenset(
    (
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "t5encoder",
        "wavtokenizer-dec",
    )
)
_NOT_ALL_KEPT = (  # recurrent blocks, sliding windows, keys and values that are compressed or shared
    "ssm.",
    "wkv.",
    "shortconv.",
    "full_attention_interval",
    "attention.sliding_window",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
)
_DIFFUSION = frozenset(("dream", "llada", "llada-moe", "rnd1"))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model file that was checked.

    Attributes:
        path: the file, or the first of its parts, as it was given.
        files: every part, in order; one, unless the model is split.
        architecture: llama.cpp's name of it (``qwen3``).
        name: as the file gives it.
        n_layer: blocks that can be steered: without those that predict further tokens.
        n_mtp_layers: blocks at the end that predict further tokens (multi-token prediction).
        n_embd: width of the residual stream.
        n_vocab: None, if the file has no vocabulary.
        n_ctx_train: context length that the model was trained with.
        kv_bytes: what a token's keys and values take in a context (F16); None, if the header does not say.
        file_bytes: of all parts together.
        quantization: types of the weights, the one that takes most bytes first: ``Q4_K, Q6_K,
            F32``.
        chat_template: Jinja text, or None.
        pooling: how the file wants a text's embedding made, as ``llama_pooling_type``; None: it does not say.
    """

    path: str
    files: tuple[str, ...]
    architecture: str
    name: str | None
    n_layer: int
    n_mtp_layers: int
    n_embd: int
    n_vocab: int | None
    n_ctx_train: int | None
    kv_bytes: int | None
    file_bytes: int
    quantization: str
    chat_template: str | None
    pooling: int | None = None

    @property
    def has_mtp_layers(self) -> bool:
        """Whether the file carries blocks for multi-token prediction."""
        return self.n_mtp_layers > 0


def check_model(path: str | Path) -> ModelInfo:
    """Check a model file and everything that belongs to it.

    Raises:
        ModelError: the file is damaged, is no model, or is one that cannot be steered; says which.
    """
    header = _header(path)
    keys = Keys(header, ModelError)
    architecture = _architecture(keys)
    parts = [header, *_other_parts(keys)]
    for part in parts:
        _check_types(part)
    if not any(part.tensors for part in parts):
        _fail_as(keys, "vocab")
    check_asserted(keys, architecture)
    n_mtp = keys.optional_integer(f"{architecture}.nextn_predict_layers") or 0
    n_embd = keys.integer(f"{architecture}.embedding_length")
    if not 1 <= n_embd <= 1 << 20:
        keys.fail("the width is absurd", found=str(n_embd), expected=f"1 to {1 << 20}")
    n_layer = keys.integer(f"{architecture}.block_count") - n_mtp
    n_vocab = header.array_lengths.get(TOKENS)
    return ModelInfo(
        path=str(path),
        files=tuple(part.path for part in parts),
        architecture=architecture,
        name=keys.optional_text("general.name"),
        n_layer=n_layer,
        n_mtp_layers=n_mtp,
        n_embd=n_embd,
        n_vocab=n_vocab or keys.optional_integer(f"{architecture}.vocab_size"),
        n_ctx_train=keys.optional_integer(f"{architecture}.context_length"),
        kv_bytes=_kv_bytes(keys, architecture, n_layer, n_embd),
        file_bytes=sum(part.file_bytes for part in parts),
        quantization=_quantization(parts),
        chat_template=keys.optional_text("tokenizer.chat_template"),
        pooling=keys.optional_integer(f"{architecture}.pooling_type"),
    )


def model_digest(
    model: ModelInfo | str | Path, *, progress: Progress | None = None, cache: Path | None = None
) -> str:
    """Digest of a model: SHA-256 of its file; of a split model, SHA-256 of its files' digests, one
    per line.

    Args:
        model: a checked model, or a path, which is checked first.
        progress: called with (bytes done, bytes in all) while files are read.
        cache: folder to remember digests in; None for the user's own cache folder.

    Raises:
        ModelError: the file is no model, or cannot be read.
    """
    info = model if isinstance(model, ModelInfo) else check_model(model)
    done = 0
    digests: list[str] = []

    def of_all(now: int, _: int) -> None:
        if progress:
            progress(done + now, info.file_bytes)

    for file in info.files:
        digests.append(cached_sha256(file, ModelError, progress=of_all, cache=cache))
        done += Path(file).stat().st_size
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def _header(path: str | Path) -> Header:
    with open_regular(path, ModelError) as file:
        return read_header(file, str(path), ModelError, keep_array=is_asserted)


def _architecture(keys: Keys) -> str:
    architecture = keys.optional_text("general.architecture")
    kind = keys.optional_text("general.type")
    for name in (kind, architecture):
        if name is not None and name in _NO_MODEL:
            _fail_as(keys, name)
    if architecture is None:
        keys.fail("the key 'general.architecture' is missing")
    if architecture == "t5":
        keys.fail(
            "encoder-decoder models cannot be steered",
            found="architecture 't5'",
            expected="a model that writes on from its prompt",
        )
    if architecture in _ENCODERS:
        keys.fail(
            "models that only encode text cannot be steered",
            found=f"architecture {architecture!r}",
            expected="a model that writes on from its prompt",
        )
    if architecture in _DIFFUSION:
        keys.fail(
            "diffusion models cannot be steered: they do not write token after token",
            found=f"architecture {architecture!r}",
            expected="a model that writes on from its prompt",
        )
    return architecture


def _fail_as(keys: Keys, name: str) -> NoReturn:
    what, hint = _NO_MODEL[name]
    location = Location(keys.header.path)
    raise ModelError("not a model", location=location, found=what, hint=hint)


def _kv_bytes(keys: Keys, architecture: str, n_layer: int, n_embd: int) -> int | None:
    """Only where every block keeps every token, and its heads' own keys and values."""
    said = {*keys.header.values, *keys.header.array_lengths}
    if any(key.startswith(f"{architecture}.{part}") for key in said for part in _NOT_ALL_KEPT):
        return None
    counts = [f"{architecture}.attention.{name}" for name in ("head_count_kv", "head_count")]
    if any(key in keys.header.array_lengths for key in counts):
        return None
    n_kv, n_head = (keys.optional_integer(key) for key in counts)
    if n_head is None or not 1 <= n_head <= n_embd:
        return None
    widths = (
        keys.optional_integer(f"{architecture}.attention.{name}") or n_embd // n_head
        for name in ("key_length", "value_length")
    )
    n_bytes = 2 * n_layer * (n_head if n_kv is None else n_kv) * sum(widths)
    return n_bytes if n_bytes > 0 else None


def _other_parts(keys: Keys) -> list[Header]:
    """Headers of the second and later files of a split model; llama.cpp finds them by name."""
    n_parts = keys.optional_integer("split.count") or 1
    if n_parts <= 1:
        return []
    part = keys.optional_integer("split.no") or 0
    path = Path(keys.header.path)
    name = _SPLIT_NAME.fullmatch(path.name)
    if n_parts > MAX_SPLITS:
        keys.fail(
            "the number of parts is absurd", found=str(n_parts), expected=f"at most {MAX_SPLITS}"
        )
    if name is None or int(name[3]) != n_parts:
        keys.fail(
            f"part of a split model of {n_parts} files, but not named like one",
            expected=f"NAME-00001-of-{n_parts:05}.gguf",
        )
    if part != 0 or int(name[2]) != 1:
        keys.fail(
            "not the first part of a split model",
            found=f"part {part + 1} of {n_parts}",
            expected=f"{name[1]}-00001-of-{n_parts:05}.gguf",
        )
    others: list[Header] = []
    for number in range(2, n_parts + 1):
        sibling = path.with_name(f"{name[1]}-{number:05}-of-{n_parts:05}.gguf")
        if not sibling.exists():
            keys.fail(f"part {number} of {n_parts} is missing", expected=str(sibling))
        header = _header(sibling)
        if Keys(header, ModelError).optional_integer("split.no") != number - 1:
            Keys(header, ModelError).fail(
                "another part than its name says",
                found=f"split.no {header.values.get('split.no')}",
                expected=f"split.no {number - 1}",
            )
        others.append(header)
    n_tensors = sum(len(each.tensors) for each in (keys.header, *others))
    declared = keys.optional_integer("split.tensors.count")
    if declared is not None and declared != n_tensors:
        keys.fail(
            "the parts do not belong together", found=f"{n_tensors} tensors", expected=str(declared)
        )
    return others


def _check_types(header: Header) -> None:
    for tensor in header.tensors.values():
        if tensor.type is F64:
            raise ModelError(
                f"the tensor {tensor.name!r} holds 64-bit numbers, on which llama.cpp crashes",
                location=Location(header.path),
                found="F64",
                expected="F32 or smaller",
                hint="Convert the model again with --outtype f32, f16 or a quantized type",
            )


def _quantization(parts: list[Header]) -> str:
    n_bytes: Counter[str] = Counter()
    for part in parts:
        for tensor in part.tensors.values():
            n_bytes[tensor.type.name] += tensor.n_bytes
    return ", ".join(name for name, _ in n_bytes.most_common())
