"""Arithmetic on directions: linear combinations, projection, normalisation. In F64, rounded once at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import PackError, UsageError
from scope_runtime.pack_types import F32Array

Directions = Mapping[int, F32Array]
"""Direction per layer, (width,)."""

Rows = Mapping[int, npt.NDArray[np.floating]]
"""Several directions per layer, (n, width)."""

F64Array = npt.NDArray[np.float64]
NOTHING_LEFT = 1e-6  # of its length: below that, what remains of a direction is rounding


@dataclass(frozen=True, slots=True)
class Editing:
    """What is done to directions after they were combined, in this order.

    Attributes:
        orthogonal_to: rows that the result must not move, per layer.
        project_out: rows that span one subspace, taken out of every layer.
        normalise: whether each layer's direction is then given length 1.
        alpha: factor at the very end.
    """

    orthogonal_to: tuple[Rows, ...] = ()
    project_out: tuple[Rows, ...] = ()
    normalise: bool = False
    alpha: float = 1.0


def combine(
    coefficients: Mapping[str, float], sources: Mapping[str, Directions]
) -> dict[int, F64Array]:
    """The sum of coefficient times direction at every layer that any source has.

    Raises:
        UsageError: a name has no source.
        PackError: the sources differ in width.
    """
    missing = sorted(set(coefficients) - set(sources))
    if missing:
        raise UsageError(
            f"the expression names {missing[0]!r}, which is no input",
            expected="one of " + ", ".join(sorted(sources)),
            hint="Inputs are called by their file's name without its ending, or as in name=path",
        )
    out: dict[int, F64Array] = {}
    width = 0
    for name, coefficient in coefficients.items():
        for layer, direction in sources[name].items():
            width = width or direction.size
            if direction.size != width:
                raise PackError(
                    f"{name} differs in width", found=str(direction.size), expected=str(width)
                )
            row = coefficient * direction.astype(np.float64)
            out[layer] = out[layer] + row if layer in out else row
    return dict(sorted(out.items()))


def edit(
    directions: Mapping[int, npt.NDArray[np.floating]], editing: Editing
) -> dict[int, F32Array]:
    """Carries out the editing; F32.

    Raises:
        PackError: nothing is left of a direction, a width differs, or a number does not fit into F32.
    """
    everywhere = [row for rows in editing.project_out for layer in rows.values() for row in layer]
    out = {}
    for layer, direction in directions.items():
        protected = [row for rows in editing.orthogonal_to for row in rows.get(layer, ())]
        value = projected_out(direction.astype(np.float64), protected + everywhere, layer)
        if editing.normalise:
            length = np.linalg.norm(value)
            if length == 0:
                raise PackError(f"the direction of layer {layer} is zero, it has no unit length")
            value = value / length
        with np.errstate(over="ignore"):
            out[layer] = (editing.alpha * value).astype(np.float32)
        if not np.isfinite(out[layer]).all():
            raise PackError(f"the direction of layer {layer} does not fit into F32")
    return out


def projected_out(
    direction: F64Array, rows: Iterable[npt.NDArray[np.floating]], layer: int
) -> F64Array:
    """The direction without its part in the rows' span.

    Raises:
        PackError: a row has another width, or nothing is left.
    """
    taken = [row.astype(np.float64) for row in rows]
    if not taken:
        return direction
    for row in taken:
        if row.shape != direction.shape:
            raise PackError(
                f"a direction to be kept clear of differs in width at layer {layer}",
                found=str(row.size),
                expected=str(direction.size),
            )
    basis = orthonormal(np.stack(taken))
    # Twice: the first pass leaves a rounding error along the basis, the second takes that too.
    rest = direction - basis.T @ (basis @ direction)
    rest = rest - basis.T @ (basis @ rest)
    if np.linalg.norm(rest) <= NOTHING_LEFT * np.linalg.norm(direction):
        raise PackError(
            f"nothing is left of the direction of layer {layer}",
            hint="It lies in what it should be kept clear of",
        )
    return rest


def orthonormal(rows: F64Array) -> F64Array:
    """An orthonormal basis of the rows' span, (rank, width)."""
    _, singular, basis = np.linalg.svd(rows, full_matrices=False)
    limit = singular[0] * max(rows.shape) * np.finfo(np.float64).eps if singular.size else 0.0
    return np.asarray(basis[singular > limit])
