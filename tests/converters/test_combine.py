"""Arithmetic on directions, against least squares and plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from converters.combine import Editing, combine, edit, orthonormal
from scope_runtime.errors import PackError, UsageError

rng = np.random.default_rng(0)


def rows(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_a_combination_is_the_sum_at_every_layer() -> None:
    a, b = {1: rows(8), 2: rows(8)}, {2: rows(8), 5: rows(8)}
    found = combine({"a": 0.5, "b": -2.0}, {"a": a, "b": b})
    assert list(found) == [1, 2, 5]
    assert np.allclose(found[1], 0.5 * a[1])
    assert np.allclose(found[2], 0.5 * a[2].astype(float) - 2 * b[2].astype(float))
    assert np.allclose(found[5], -2 * b[5])


def test_projection_leaves_the_least_squares_residual() -> None:
    direction, protected, everywhere = rows(16), rows(3, 16), {9: rows(2, 16)}
    editing = Editing(orthogonal_to=({4: protected},), project_out=(everywhere,))
    found = edit({4: direction, 5: direction}, editing)
    span = np.concatenate([protected, everywhere[9]]).astype(np.float64)
    coefficients, *_ = np.linalg.lstsq(span.T, direction.astype(np.float64), rcond=None)
    assert np.allclose(found[4], direction - span.T @ coefficients, atol=1e-6)
    assert np.abs(span @ found[4]).max() < 1e-5
    assert np.abs(everywhere[9] @ found[5]).max() < 1e-5
    assert np.abs(protected @ found[5]).max() > 1e-2


def test_normalised_before_alpha() -> None:
    found = edit({1: 7 * rows(8)}, Editing(normalise=True, alpha=-3.0))
    assert np.linalg.norm(found[1]) == pytest.approx(3, rel=1e-6)


def test_a_basis_knows_its_rank() -> None:
    one, other = rows(2, 8).astype(np.float64)
    basis = orthonormal(np.stack([one, other, one - other, np.zeros(8)]))
    assert basis.shape == (2, 8)
    assert np.allclose(basis @ basis.T, np.eye(2))


def test_refusals() -> None:
    with pytest.raises(UsageError, match="names 'b', which is no input; expected one of a"):
        combine({"a": 1, "b": 1}, {"a": {1: rows(4)}})
    with pytest.raises(PackError, match="b differs in width; found 5; expected 4"):
        combine({"a": 1, "b": 1}, {"a": {1: rows(4)}, "b": {1: rows(5)}})
    direction = rows(4)
    with pytest.raises(PackError, match="nothing is left of the direction of layer 1"):
        edit({1: direction}, Editing(orthogonal_to=({1: 3 * direction[None]},)))
    with pytest.raises(PackError, match="differs in width at layer 1"):
        edit({1: direction}, Editing(project_out=({1: rows(1, 5)},)))
    with pytest.raises(PackError, match="layer 1 is zero"):
        edit({1: np.zeros(4, np.float32)}, Editing(normalise=True))
    with pytest.raises(PackError, match="does not fit into F32"):
        edit({1: direction}, Editing(alpha=1e300))
