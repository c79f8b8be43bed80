"""implicit_warp and invert for arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import options
from . import _check, _step_matrix
from ._library import kernels

MOST_ITERATIONS = 2**31 - 1


class ImplicitWarp(NamedTuple):
    """What :func:`implicit_warp` and :func:`invert` return.

    Attributes:
        displacement: [B, 3, D, H, W], u - identity on the grid of the result, in normalised coordinates of the map
            that is inverted.
        residual: [B, 1, D, H, W], the length of what remains of ``c_fixed - c_moving(u)``, in voxels of that map.
        valid: [B, 1, D, H, W] bool, where |u| <= 1 on every axis and the residual is below one voxel.
    """

    displacement: np.ndarray
    residual: np.ndarray
    valid: np.ndarray


def implicit_warp(
    c_moving: np.ndarray,
    c_fixed: np.ndarray,
    *,
    iterations: int = 20,
    tolerance: float = 0.0,
    step: str = "moving",
    mask: np.ndarray | None = None,
) -> ImplicitWarp:
    """The warp that matches two coordinate maps: solve ``c_moving(u) = c_fixed(v)`` for u.

    ``warp(x_moving, displacement)`` then matches the fixed exam. :func:`deepatlas_ops.implicit_warp` describes the
    recursion; this is the same without its argument ``gradient``.

    Args:
        c_moving: [B, 3, d, h, w], channels x, y, z; float64 or float32.
        c_fixed: [B, 3, D, H, W], in the same dtype. The grids of the two maps may differ in shape.
        iterations: the number of updates, which start from the identity.
        tolerance: in voxels of the moving map. If it is above 0, a voxel stops when its update is shorter. With 0 all
            iterations run.
        step: the matrix that the difference of the coordinates is multiplied by: ``"moving"``, ``"fixed"``,
            ``"literal"``, ``"direction_cosine"`` or ``"newton"``. The mean matrices are computed in float64.
        mask: [B, 1, d, h, w] non-negative weights on the grid of ``c_moving`` for the mean of its Jacobians: bool, an
            integer type or the dtype of the maps. A mask that is 0 everywhere counts as no mask.

    Returns:
        :class:`ImplicitWarp` of displacement, residual and valid on the grid of ``c_fixed``; displacement and residual
        in the dtype of the maps. Outside its grid ``c_moving`` is continued linearly, so that every u is finite.

    Raises:
        ValueError: a wrong type, shape or dtype, or an option that is not among those above.
        MemoryError: there is not enough memory for the result.
    """
    op = "implicit_warp"
    moving = _check.volume(op, "c_moving", c_moving, channels=3)
    fixed = _check.volume(op, "c_fixed", c_fixed, channels=3)
    _check.alike(op, "c_fixed", fixed, "c_moving", moving)
    weights = _check.mask(op, mask, "c_moving", moving)
    return solve(op, moving, fixed, weights, iterations, tolerance, step)


def invert(
    field: np.ndarray,
    size: Sequence[int] | None = None,
    *,
    iterations: int = 20,
    tolerance: float = 0.0,
    step: str = "moving",
    mask: np.ndarray | None = None,
) -> ImplicitWarp:
    """The inverse of a coordinate map: solve ``field(u) = v`` for u at every voxel v of a grid.

    The inverse map is the identity of that grid plus ``displacement``. This is :func:`implicit_warp` onto the identity.

    Args:
        field: [B, 3, d, h, w] absolute normalised coordinates, channels x, y, z; float64 or float32.
        size: (D, H, W) of the grid of the result, which spans [-1, 1] of the coordinates that ``field`` maps to. None
            is the size of ``field``.
        iterations, tolerance, step, mask: as in :func:`implicit_warp`, where ``field`` is ``c_moving``.

    Returns:
        :class:`ImplicitWarp` on the grid of ``size``.

    Raises:
        ValueError, MemoryError: as :func:`implicit_warp`; a size that is not three positive integers.
    """
    moving = _check.volume("invert", "field", field, channels=3)
    sizes = list(moving.shape[2:]) if size is None else _check.size("invert", size)
    weights = _check.mask("invert", mask, "field", moving)
    shape = (moving.shape[0], 3, *sizes)
    with _check.room("invert", shape, moving.dtype):
        fixed = np.empty(shape, moving.dtype)
        fixed[:] = identity(sizes, moving.dtype)
    return solve("invert", moving, fixed, weights, iterations, tolerance, step)


def identity(size: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Coordinates of a grid's own voxels: [3, D, H, W], read-only."""
    d, h, w = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in size)
    axes = np.broadcast_arrays(w, h[:, None], d[:, None, None])
    return np.stack(axes).astype(dtype)


def solve(
    op: str,
    moving: np.ndarray,
    fixed: np.ndarray,
    weights: np.ndarray | None,
    iterations: int,
    tolerance: float,
    step: str,
) -> ImplicitWarp:
    """Check the options and run the kernel on arrays that have been checked."""
    iterations, tolerance = options.plain(iterations), options.plain(tolerance)
    options.count(op, "iterations", iterations)
    if iterations > MOST_ITERATIONS:
        _check.fail(op, "iterations", f"at most {MOST_ITERATIONS}", iterations)
    options.positive(op, "tolerance", tolerance, zero=True)
    options.choice(op, "step", step, options.STEPS)
    with _check.room(op, fixed.shape, fixed.dtype):
        matrix, ruler = _step_matrix.matrices(moving, fixed, weights, step)
        found = kernels().implicit_warp(
            moving, fixed, matrix, ruler, iterations, float(tolerance), step == "newton"
        )
    return ImplicitWarp(*found)
