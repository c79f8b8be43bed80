"""The affine map between two clouds of points that belong together, robust to outliers (section 5.2.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepatlas.errors import DataError

# Residuals beyond this many standard deviations have no weight (Tukey's biweight: 95 % efficient for normal errors).
_TUKEY = 4.685
# From the median of absolute residuals in three dimensions to a standard deviation along one axis.
_MEDIAN_OF_CHI3 = 1.5382
_ROUNDS = 20


def fit_affine(
    source: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None, *, robust: bool = True
) -> NDArray[np.float64]:
    """The matrix that takes ``source`` to ``target`` with the least squared distance.

    With ``robust``, Tukey's biweight leaves out points that lie far from where the others put them, by reweighted least
    squares from the plain solution.

    Args:
        source: ``[N, 3]``.
        target: ``[N, 3]``.
        weights: ``[N]``, at least 0; None for equal weights.
        robust: whether outliers count less.

    Returns:
        float64 ``[4, 4]``.

    Raises:
        DataError: fewer than four points have a weight, or they lie in one plane.
    """
    a, b, base = _checked(source, target, weights)
    matrix = _solve(a, b, base)
    if not robust:
        return matrix
    for _ in range(_ROUNDS):
        share = base * tukey(np.linalg.norm(_apply(matrix, a) - b, axis=1), base)
        try:
            new = _solve(a, b, share)
        except DataError:
            return matrix
        done = np.abs(_apply(new, a) - _apply(matrix, a)).max() < 1e-4 * max(float(np.ptp(b)), 1e-12)
        matrix = new
        if done:
            break
    return matrix


def fit_rigid(
    source: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None, *, robust: bool = True
) -> NDArray[np.float64]:
    """Like :func:`fit_affine`, with a rotation and a translation alone (Kabsch); both clouds are in millimetres."""
    a, b, base = _checked(source, target, weights)
    matrix = _kabsch(a, b, base)
    for _ in range(_ROUNDS if robust else 0):
        share = base * tukey(np.linalg.norm(_apply(matrix, a) - b, axis=1), base)
        new = _kabsch(a, b, share if share.sum() > 0 else base)
        done = np.abs(_apply(new, a) - _apply(matrix, a)).max() < 1e-4 * max(float(np.ptp(b)), 1e-12)
        matrix = new
        if done:
            break
    return matrix


def tukey(distance: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight in [0, 1] of each distance ``[N]`` between where a point is and where it should be."""
    median = float(np.median(distance[weights > 0]))
    limit = _TUKEY * max(median / _MEDIAN_OF_CHI3, 1e-12)
    return np.square(1 - np.square(distance / limit).clip(max=1))


def _checked(
    source: ArrayLike, target: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != 3 or a.shape != b.shape:
        raise DataError(f"fit_affine: needs two arrays [N, 3] of one shape, got {a.shape} and {b.shape}")
    base = np.ones(len(a)) if weights is None else np.asarray(weights, dtype=np.float64)
    if base.shape != (len(a),) or not np.isfinite(base).all() or (base < 0).any():
        raise DataError(
            f"fit_affine: weights must be [{len(a)}], finite and at least 0, got shape {base.shape}"
        )
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b, base = a[finite], b[finite], base[finite]
    if np.count_nonzero(base) < 4:
        raise DataError(
            f"fit_affine: {np.count_nonzero(base)} points are too few; an affine map needs four that lie in no plane"
        )
    return a, b, base


def _solve(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    total = weights.sum()
    if np.count_nonzero(weights) < 4 or total <= 0:
        raise DataError("fit_affine: too few points agree with each other")
    # Centred sums are exact enough in normal equations, and cost one pass over the points.
    centre_a, centre_b = weights @ a / total, weights @ b / total
    left = (a - centre_a) * weights[:, None]
    moment = left.T @ (a - centre_a)
    spread = np.linalg.eigvalsh(moment)
    if spread[0] <= 1e-12 * spread[-1] or spread[-1] <= 0:
        raise DataError("fit_affine: the points lie in one plane; an affine map needs four that do not")
    linear = np.linalg.solve(moment, left.T @ (b - centre_b)).T
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, centre_b - linear @ centre_a
    return matrix


def _kabsch(
    a: NDArray[np.float64], b: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    total = weights.sum()
    centre_a, centre_b = weights @ a / total, weights @ b / total
    left, _, right = np.linalg.svd(((b - centre_b) * weights[:, None]).T @ (a - centre_a))
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    matrix = np.eye(4)
    matrix[:3, :3] = left @ turn @ right
    matrix[:3, 3] = centre_b - matrix[:3, :3] @ centre_a
    return matrix


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ matrix[:3, :3].T + matrix[:3, 3]
