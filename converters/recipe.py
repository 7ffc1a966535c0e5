"""How a control vector was made, as JSON in its metadata (``scope.recipe``): enough to make it again.

Inputs are named by file name and SHA-256, never by path: the same inputs give the same bytes
wherever they lie, and a file says nothing about the machine that it was made on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import Progress, cached_sha256
from scope_runtime.vectors import ControlVector
from scope_runtime.version import __version__

KEY = "scope.recipe"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Input:
    """A file that something is made from.

    Attributes:
        name: its file name; within an SAE set, the set's folder stands before it.
        sha256: empty, if digests were left out.
    """

    name: str
    sha256: str

    def data(self) -> dict[str, str]:
        """As JSON-ready data."""
        return {"name": self.name, "sha256": self.sha256}


def input_of(
    path: Path, *, digest: bool = True, folder: bool = False, progress: Progress | None = None
) -> Input:
    """A file as an input; ``folder``: named together with the folder that it lies in."""
    name = f"{path.resolve().parent.name}/{path.name}" if folder else path.name
    return Input(name, cached_sha256(path, PackError, progress=progress) if digest else "")


def metadata(recipe: Mapping[str, Any], **more: str) -> dict[str, str]:
    """The recipe and further facts as a control vector's metadata."""
    text = json.dumps({"version": VERSION, **recipe}, sort_keys=True, allow_nan=False)
    extra = {f"scope.{key}": value for key, value in more.items() if value}
    return {KEY: text, "scope.version": __version__, **extra}


def recipe_of(vector: ControlVector) -> dict[str, Any] | None:
    """The recipe that a control vector carries, or None.

    Raises:
        PackError: there is one that cannot be read.
    """
    text = dict(vector.metadata).get(KEY)
    if text is None:
        return None
    location = Location(vector.path)
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        raise PackError(f"{KEY} is no JSON", location=location) from None
    if not isinstance(recipe, dict) or recipe.get("version") != VERSION:
        raise PackError(f"{KEY} is of an unknown version", location=location, expected=str(VERSION))
    layers = recipe.get("layers")
    if not isinstance(layers, list) or not all(type(each) is int for each in layers):
        raise PackError(f"{KEY} does not say which layers it is for", location=location)
    return recipe


def _sha256(path: Path) -> str:
    return cached_sha256(path, PackError)


def find_input(
    data: Mapping[str, str], folders: Sequence[Path], digest: Callable[[Path], str] = _sha256
) -> Path:
    """The file of an input: in one of the folders, with the recorded digest.

    Raises:
        UsageError: no such file, or only others of that name.
    """
    name, wanted = str(data["name"]), str(data["sha256"])
    found = [folder / name for folder in folders if (folder / name).is_file()]
    # A set may be given as its own folder, under whatever name.
    found += [
        folder / Path(name).name for folder in folders if (folder / Path(name).name).is_file()
    ]
    for path in found:
        if not wanted or digest(path) == wanted:
            return path
    raise UsageError(
        f"the input {name} is not there" if not found else f"the input {name} is another file",
        found=", ".join(map(str, found)) or None,
        expected=f"sha256 {wanted}" if wanted else None,
        hint="Name the folders that hold the inputs",
    )


def find_inputs(inputs: Iterable[Mapping[str, str]], folders: Sequence[Path]) -> list[Path]:
    """`find_input` for each."""
    return [find_input(each, folders) for each in inputs]
