"""What the readers of steering vectors share: numbers by layer, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from converters.features import Vectors
from scope_runtime.errors import Location, PackError
from scope_runtime.files import open_regular, sha256_of
from scope_runtime.pack_types import MAX_LAYERS, MAX_WIDTH, F32Array, check_finite


def make_vectors(
    path: Path, kind: str, directions: Mapping[int, F32Array], model: str | None = None
) -> Vectors:
    """Vectors that are added, once they are found to be what they should.

    Raises:
        PackError: none, too many or absurd layers, other widths, no rows, NaN or infinity.
    """
    if not directions or len(directions) > MAX_LAYERS:
        fail(path, "no directions, or too many", found=str(len(directions)))
    width = next(iter(directions.values())).size
    for layer, direction in directions.items():
        if not 0 <= layer < MAX_LAYERS:
            fail(path, "no model has such a layer", found=str(layer))
        if direction.ndim != 1 or direction.size != width or not 1 <= width <= MAX_WIDTH:
            fail(
                path,
                f"the direction of layer {layer} has the wrong shape",
                found=str(direction.shape),
                expected=f"({width},)",
            )
        try:
            check_finite(direction, f"the direction of layer {layer}")
        except PackError as error:
            error.location = Location(str(path))
            raise
        direction.flags.writeable = False
    with open_regular(path, PackError) as file:
        digest = sha256_of(file)
    return Vectors(
        path, kind, digest, MappingProxyType(dict(sorted(directions.items()))), model_hint=model
    )


def as_row(values: Any, path: Path, layer: object) -> F32Array:
    """A list of numbers as F32."""
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_WIDTH:
        fail(path, f"the direction of layer {layer!r} is no list of numbers"[:120])
    if any(not isinstance(each, int | float) or isinstance(each, bool) for each in values):
        fail(path, f"the direction of layer {layer!r} is no list of numbers"[:120])
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
            return np.array(values, dtype=np.float64).astype(np.float32)
    except OverflowError:
        fail(path, f"the direction of layer {layer!r} is not finite"[:120])


def fail(
    path: Path, message: str, *, found: str | None = None, expected: str | None = None
) -> NoReturn:
    """Raise a PackError that lies in this file."""
    raise PackError(message, location=Location(str(path)), found=found, expected=expected)
