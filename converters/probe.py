"""A first look at a file: what kind of file, which arrays, what the configuration beside it says."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from converters.readers.npz_file import open_npz
from converters.readers.safetensors_file import open_safetensors
from converters.readers.stored import NO_ZIP, File
from converters.readers.torch_file import load_values, open_torch
from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, read_exactly

MAX_JSON_BYTES = 1 << 20
MAX_VECTOR_JSON_BYTES = 48 << 20
_CONFIGURATIONS = ("cfg.json", "config.json", "hyperparams.json")


@dataclass(eq=False)
class Probe:
    """A file that may hold an SAE or vectors.

    Attributes:
        path: the file.
        root: the folder that was asked for, or the file's own; links may not lead out of it.
        type: ``gguf``, ``safetensors``, ``npz``, ``pt``, ``json``, or None: none of these.
    """

    path: Path
    root: Path
    type: str | None = field(init=False)

    def __post_init__(self) -> None:
        check_inside(self.path, self.root)
        self.type = sniff(self.path)

    @cached_property
    def data(self) -> File | None:
        """The file as named arrays; None if it is no such file. Raises PackError if damaged."""
        if self.type == "safetensors":
            return open_safetensors(self.path)
        if self.type == "npz":
            return open_npz(self.path)
        if self.type == "pt" and isinstance(self.values, dict):
            import torch

            if all(isinstance(each, torch.Tensor) for each in self.values.values()) and all(
                isinstance(each, str) for each in self.values
            ):
                return open_torch(self.path)
        return None

    @property
    def weights(self) -> File:
        """`data`, where a reader has recognised it."""
        if self.data is None:
            _fail(self.path, "not a file of arrays")
        return self.data

    @cached_property
    def values(self) -> Any:
        """What a ``.pt`` file holds. Raises PackError if it cannot be trusted."""
        return load_values(self.path)

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays."""
        return frozenset(self.data.arrays) if self.data is not None else frozenset()

    @cached_property
    def json(self) -> Any:
        """The file itself, if it is JSON, else None."""
        return read_json(self.path, MAX_VECTOR_JSON_BYTES) if self.type == "json" else None

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration beside the file, or above its ``checkpoints`` folder; perhaps empty."""
        folder = self.path.parent
        folders = [folder] if folder.name != "checkpoints" else [folder, folder.parent]
        for each in folders:
            for name in _CONFIGURATIONS:
                file = each / name
                if file.is_file():
                    check_inside(file, self.root if file.is_relative_to(self.root) else each)
                    values = read_json(file, MAX_JSON_BYTES)
                    if not isinstance(values, dict):
                        _fail(file, "no JSON object", found=type(values).__name__)
                    return Configuration(file, values)
        return Configuration(None, {}, self.path)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Checked access to a configuration's values.

    Attributes:
        file: None, if there is none.
        of: named in errors where there is no file.
    """

    file: Path | None
    values: dict[str, Any]
    of: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, if there is one."""
        return (self.file,) if self.file is not None else ()

    def fail(
        self, message: str, *, found: str | None = None, expected: str | None = None
    ) -> NoReturn:
        """Raise a PackError that lies in the configuration."""
        _fail(self.file or self.of or Path(), message, found=found, expected=expected)

    def part(self, key: str) -> Configuration:
        """A table in it; empty if it is not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(f"{key} is no table", found=repr(value)[:80])
        return Configuration(self.file, value or {}, self.of)

    def text(self, key: str) -> str | None:
        """A string, or None."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(f"{key} is no text", found=repr(value)[:80])
        if isinstance(value, str) and not value.isprintable():
            self.fail(f"{key} has control characters", found=ascii(value[:80]))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(f"{key} is neither true nor false", found=repr(value)[:80])
        return default if value is None else bool(value)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int | None:
        """A whole number of at least ``least``, or the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 31:
            self.fail(
                f"{key} is no count",
                found=repr(value)[:80],
                expected=f"a whole number from {least}",
            )
        return int(value)

    def number(self, key: str) -> float | None:
        """A finite number above zero, or None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            self.fail(f"{key} is no number above 0", found=repr(value)[:80])
        return float(value)

    def expect(self, key: str, found: int) -> None:
        """Raise PackError if a count is there and differs from what the weights say."""
        said = self.count(key)
        if said not in (None, found):
            self.fail(f"{key} differs from the weights", found=str(said), expected=str(found))


def sniff(path: Path) -> str | None:
    """The kind of a file, from its first bytes and, of a zip archive, its members' names."""
    with open_regular(path, PackError) as file:
        start = bytes(read_exactly(file, 0, 64))
        if start[:4] == b"GGUF":
            return "gguf"
        if start[:4] == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(file) as archive:
                    names = [each.filename for each in archive.infolist()[:4096]]
            except NO_ZIP:
                return "pt"
            return "npz" if any(name.endswith(".npy") for name in names) else "pt"
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 40:
        return "safetensors"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return "json"
    return None


def read_json(path: Path, max_bytes: int) -> Any:
    """A JSON file of bounded size. Raises PackError."""
    with open_regular(path, PackError) as file:
        raw = bytes(read_exactly(file, 0, max_bytes + 1))
    if len(raw) > max_bytes:
        _fail(path, "too long", expected=f"at most {max_bytes} bytes")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as reason:
        _fail(path, "no JSON", found=str(reason)[:200])


def check_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leads out of the set. The hub's cache links to ``blobs`` beside it."""
    real, root = file.resolve(), folder.resolve()
    if real.is_relative_to(root):
        return
    for parent in (root, *root.parents):
        if parent.name == "snapshots" and real.is_relative_to(parent.parent / "blobs"):
            return
    _fail(file, "a link that leads out of the set")


def _fail(
    path: Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
