"""Ways to damage a GGUF file, by the names that ``cases/files.yaml`` uses."""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.raw_gguf import BASES, TENSOR_TYPES, Key, RawGguf, Tensor

SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def magic(file: RawGguf, value: str) -> None:
    file.magic = value.encode()


def version(file: RawGguf, value: int) -> None:
    file.version = value


def big_endian(file: RawGguf, _: Any) -> None:
    file.byte_order = ">"


def counts(file: RawGguf, value: dict[str, int]) -> None:
    file.n_tensors = value.get("tensors")
    file.n_keys = value.get("keys")


def key(file: RawGguf, value: dict[str, Any]) -> None:
    """Sets a key, at its old place if it was there."""
    new = Key(value["name"], value["type"], value["value"])
    for index, old in enumerate(file.keys):
        if old.name == new.name:
            file.keys[index] = new
            return
    file.keys.append(new)


def drop_key(file: RawGguf, name: str) -> None:
    file.keys.remove(file.key(name))


def repeat_key(file: RawGguf, name: str) -> None:
    file.keys.append(copy.copy(file.key(name)))


def tensor(file: RawGguf, value: dict[str, Any]) -> None:
    """Adds a tensor of zeros; ``type`` by name."""
    number, block, n_bytes = TENSOR_TYPES[value.get("type", "F32")]
    data = bytes(math.prod(value["dims"]) // block * n_bytes)
    file.tensors.append(Tensor(value["name"], value["dims"], data, number))


def drop_tensor(file: RawGguf, name: str) -> None:
    file.tensors.remove(file.tensor(name))


def drop_tensors(file: RawGguf, _: Any) -> None:
    file.tensors.clear()


def repeat_tensor(file: RawGguf, name: str) -> None:
    file.tensors.append(copy.copy(file.tensor(name)))


def rename(file: RawGguf, value: list[str]) -> None:
    file.tensor(value[0]).name = value[1]


def describe(file: RawGguf, value: dict[str, Any]) -> None:
    """Changes what a tensor's description says, not its data."""
    one = file.tensor(value.pop("name"))
    for name, new in value.items():
        setattr(one, name, new)


def resize(file: RawGguf, value: dict[str, Any]) -> None:
    """Gives a tensor another shape, with ones to fill it."""
    one = file.tensor(value["name"])
    one.dims = value["dims"]
    one.data = np.ones(math.prod(one.dims), "<f4").tobytes()


def number(file: RawGguf, value: dict[str, Any]) -> None:
    """Puts a number into a tensor's data."""
    one = file.tensor(value["name"])
    new = struct.pack("<f", SPECIAL.get(value["value"], value["value"]))
    at = 4 * value["at"]
    one.data = one.data[:at] + new + one.data[at + 4 :]


EDITS: dict[str, Callable[[RawGguf, Any], None]] = {
    edit.__name__: edit
    for edit in (
        magic,
        version,
        big_endian,
        counts,
        key,
        drop_key,
        repeat_key,
        tensor,
        drop_tensor,
        drop_tensors,
        repeat_tensor,
        rename,
        describe,
        resize,
        number,
    )
}


def damaged(base: str, damage: list[dict[str, Any]]) -> bytes:
    """The bytes of a sound file of that kind after the damage, in order; ``cut`` works on the
    bytes."""
    file = BASES[base]()
    cut: int | None = None
    for step in copy.deepcopy(damage):
        ((name, value),) = step.items()
        if name == "cut":
            cut = value
        else:
            EDITS[name](file, value)
    raw = file.to_bytes()
    return raw[:cut] if cut is not None else raw
