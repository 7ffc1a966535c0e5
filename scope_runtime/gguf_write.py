"""Writing GGUF: same input, same bytes, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType

from scope_runtime.errors import PackError
from scope_runtime.files import written_whole
from scope_runtime.gguf_check import MAX_NAME_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the file. For an array, ``type`` is that of its elements."""

    key: str
    value: Any
    type: GGUFValueType
    array: bool = False


def text(key: str, value: str) -> Entry:
    """A string."""
    return Entry(key, value, GGUFValueType.STRING)


def number(key: str, value: int) -> Entry:
    """An unsigned 32-bit number."""
    return Entry(key, value, GGUFValueType.UINT32)


def write_gguf(
    path: str | Path,
    architecture: str,
    entries: Iterable[Entry],
    tensors: Iterable[tuple[str, npt.NDArray[np.float32]]],
) -> None:
    """Write a GGUF file of version 3 with the keys and tensors in the order given.

    Raises:
        PackError: the file cannot be written; nothing is left of it then.
    """
    with written_whole(path, PackError) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            for entry in entries:
                # Not the writer's own add_string and add_array: these drop empty values without a
                # word.
                if entry.array:
                    writer.add_key_value(entry.key, entry.value, GGUFValueType.ARRAY, entry.type)
                else:
                    writer.add_key_value(entry.key, entry.value, entry.type)
            for name, values in tensors:
                if len(name.encode()) > MAX_NAME_BYTES:
                    raise PackError("a tensor's name is too long", found=name)
                writer.add_tensor(name, np.ascontiguousarray(values, dtype="<f4"))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
