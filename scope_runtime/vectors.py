"""Control vectors: llama.cpp's own GGUF file of one direction per layer.

llama.cpp (``common_control_vector_load_one``) reads no key at all; every tensor must be
``direction.N``, N a block from 1 on, F32, one-dimensional, all of one length. What it would reject,
and what it would misread without a word (``direction.1x`` is block 1 to it), is refused here. One
file has a layer once; over several files llama.cpp adds up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly, sha256_of
from scope_runtime.gguf_check import Header, read_header
from scope_runtime.gguf_types import F32
from scope_runtime.gguf_values import Keys
from scope_runtime.gguf_write import number, text, write_gguf
from scope_runtime.pack_types import MAX_LAYERS, MAX_WIDTH, F32Array, check_finite

ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, eq=False)
class ControlVector:
    """A control vector.

    Attributes:
        path: the file it was read from, as it was given.
        digest: SHA-256 of the file, lower-case hex.
        model_hint: architecture of the model it was made for, if the file says so.
        layers: direction to be added to the output of a 0-based block (1 and up), (width,);
            ascending.
        metadata: the file's strings and numbers other than the two above, sorted by key.
    """

    path: str
    digest: str
    model_hint: str | None
    layers: Mapping[int, F32Array] = field(repr=False)
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def width(self) -> int:
        """Width of the residual stream that the directions are for."""
        return next(iter(self.layers.values())).size


def read_control_vector(path: str | Path) -> ControlVector:
    """Read a control vector and check all of it.

    Raises:
        PackError: with the path, and what does not hold.
    """
    with open_regular(path, PackError) as file:
        header = read_header(file, str(path), PackError)
        _check_kind(header)
        layers = read_directions(file, header)
        return ControlVector(str(path), sha256_of(file), _hint(header), layers, _metadata(header))


def write_control_vector(
    path: str | Path,
    layers: Mapping[int, F32Array],
    *,
    model_hint: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a control vector that llama.cpp and repeng load; same input, same bytes.

    Args:
        path: replaced if it exists.
        layers: direction per block (1 and up), (width,), F32.
        model_hint: the model's architecture. repeng wants the key, so it is written even when
            empty.
        metadata: keys that start with ``scope.``: ``scope.source``, ``scope.sae_sha256``,
            ``scope.features``, ``scope.alpha``, ``scope.version``.

    Raises:
        PackError: llama.cpp would refuse the file, or it cannot be written.
    """
    location = Location(str(path))
    if not layers:
        raise PackError("a control vector without directions", location=location)
    width = next(iter(layers.values())).size
    for layer, direction in layers.items():
        _check(layer, direction, width, location)
    entries = [
        text(f"{ARCHITECTURE}.model_hint", model_hint),
        number(f"{ARCHITECTURE}.layer_count", len(layers)),
    ]
    for key, value in sorted((metadata or {}).items()):
        if not key.startswith("scope."):
            raise PackError(
                "a key of the metadata is not ours to write",
                location=location,
                found=key,
                expected="scope.…",
            )
        entries.append(text(key, value))
    tensors = [(f"direction.{layer}", layers[layer]) for layer in sorted(layers)]
    write_gguf(path, ARCHITECTURE, entries, tensors)


def _check(layer: int, direction: F32Array, width: int, location: Location) -> None:
    name = f"direction.{layer}"
    if layer == 0:
        raise PackError(
            "direction.0 is refused by llama.cpp",
            location=location,
            expected="direction.1 or above",
            hint="Block 0 can be steered with a feature pack",
        )
    if not 1 <= layer < MAX_LAYERS:
        raise PackError(
            f"{name}: no model has such a layer",
            location=location,
            expected=f"1 to {MAX_LAYERS - 1}",
        )
    if direction.dtype != np.float32 or direction.ndim != 1:
        found = f"{direction.dtype} of {direction.ndim} dimensions"
        raise PackError(f"{name} is no row of F32", location=location, found=found)
    if not 1 <= direction.size <= MAX_WIDTH or direction.size != width:
        raise PackError(
            f"{name} differs in width",
            location=location,
            found=str(direction.size),
            expected=str(width),
        )
    try:
        check_finite(direction, name)
    except PackError as error:
        error.location = location
        raise


def _check_kind(header: Header) -> None:
    keys = Keys(header, PackError)
    architecture = keys.optional_text("general.architecture")
    if architecture not in (
        ARCHITECTURE,
        None,
    ):  # llama.cpp does not ask for the key, so it may be absent
        keys.fail(
            "not a control vector",
            found=f"architecture {architecture!r}",
            expected=repr(ARCHITECTURE),
        )
    mode = keys.optional_text("glp.mode")
    if mode not in (None, "add"):
        keys.fail(
            "made for another operation than adding, which is all that llama.cpp does",
            found=f"glp.mode {mode!r}",
            expected="'add'",
        )


def read_directions(file: BinaryIO, header: Header) -> Mapping[int, F32Array]:
    """The directions of an open control vector by layer, ascending, whatever its keys say.

    Raises:
        PackError: llama.cpp would refuse or misread the file.
    """
    keys = Keys(header, PackError)
    if not header.tensors:
        keys.fail("a control vector without directions")
    if header.padded_end > header.file_bytes:  # llama.cpp reads the padding of the last tensor too
        keys.fail(
            "cut short in the padding of the last tensor",
            found=f"a file of {header.file_bytes} bytes",
            expected=f"at least {header.padded_end}",
        )
    layers: dict[int, F32Array] = {}
    width = 0
    for name, info in header.tensors.items():
        match = _DIRECTION.fullmatch(name)
        if not match:
            keys.fail(
                "a control vector holds directions only", found=repr(name), expected="direction.N"
            )
        if info.type is not F32:
            keys.fail(f"{name} is not F32", found=info.type.name)
        if any(dim != 1 for dim in info.shape[:-1]):
            keys.fail(f"{name} is not one-dimensional", found=str(info.shape))
        width = width or info.shape[-1]
        if not 1 <= int(match[1]) < MAX_LAYERS or info.shape[-1] > MAX_WIDTH:
            _check(int(match[1]), np.zeros(1, np.float32), 1, Location(header.path))
            keys.fail(
                f"{name} is absurdly wide",
                found=str(info.shape[-1]),
                expected=f"at most {MAX_WIDTH}",
            )
        data = read_exactly(file, info.offset, info.n_bytes)
        if len(data) != info.n_bytes:
            keys.fail("changed while it was read")
        direction = np.frombuffer(data, dtype="<f4")
        direction.flags.writeable = False
        _check(int(match[1]), direction, width, Location(header.path))
        layers[int(match[1])] = direction
    return MappingProxyType(dict(sorted(layers.items())))


def _hint(header: Header) -> str | None:
    hint = header.values.get(f"{ARCHITECTURE}.model_hint")
    return hint if isinstance(hint, str) and hint else None


def _metadata(header: Header) -> tuple[tuple[str, str], ...]:
    known = ("general.architecture", f"{ARCHITECTURE}.model_hint")
    return tuple(
        (key, str(value)) for key, value in sorted(header.values.items()) if key not in known
    )
