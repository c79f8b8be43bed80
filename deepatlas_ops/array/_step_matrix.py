"""The step matrix of the inversion in NumPy: that of ``deepatlas_ops/reference/invert.py``, in float64."""

from __future__ import annotations

import numpy as np


def matrices(
    moving: np.ndarray, fixed: np.ndarray, weights: np.ndarray | None, step: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The step matrix, and the ruler of the residuals unless it is the identity; [B, 3, 3] in the dtype of the maps.

    The recursion leaves the step matrix times a difference of coordinates. The ruler undoes the step matrix and applies
    the inverse mean Jacobian of ``moving``, so that residuals do not depend on the step.
    """
    # NaN and infinity in a map give the identity, without a warning.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        own = _inverse_or_identity(_mean_jacobian(moving, weights))
        if step in ("moving", "newton"):
            return np.ascontiguousarray(own, moving.dtype), None
        matrix = _fixed_matrix(_mean_jacobian(fixed, None), step)
        ruler = own @ _inverse_or_identity(matrix)
    return np.ascontiguousarray(matrix, moving.dtype), np.ascontiguousarray(ruler, moving.dtype)


def _fixed_matrix(mean: np.ndarray, step: str) -> np.ndarray:
    """The step matrix that the fixed map gives. Eqs 5 and 7 multiply a row vector, hence the transposes."""
    if step == "fixed":
        return _inverse_or_identity(mean)
    if step == "literal":
        return np.where(_cofactors(mean)[2], mean.swapaxes(1, 2), np.eye(3))
    squared = (mean**2).sum(1, keepdims=True)
    return (mean / np.sqrt(np.where(squared > 0, squared, 1.0))).swapaxes(1, 2)


def _mean_jacobian(field: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Weighted mean of the local Jacobians: [B, 3, 3], with the field's channels as rows and x, y, z as columns.

    Without weights the mean of the differences along an axis telescopes, so only the faces of the volume are read. With
    weights the differences are moved from the field to the weights. A mask without any weight counts as no mask.
    """
    everywhere = np.stack([_mean_difference(field, axis) for axis in (4, 3, 2)], -1)
    if weights is None:
        return everywhere
    weight = weights[:, 0].astype(np.float64)
    total = weight.sum((1, 2, 3))[:, None]
    columns = []
    for column, axis in enumerate((3, 2, 1)):
        if weight.shape[axis] == 1:
            columns.append(everywhere[..., column])
            continue
        share = _difference_adjoint(weight, axis)[:, None]
        # A value that enters with no weight may be anything, even NaN.
        sums = np.where(share == 0, 0.0, field * share).sum((2, 3, 4))
        columns.append(np.where(total == 0, everywhere[..., column], sums / np.where(total == 0, 1.0, total)))
    return np.stack(columns, -1)


def _mean_difference(field: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the central differences (one-sided at the borders) along an axis: [B, 3]."""
    n = field.shape[axis]

    def face(i: int) -> np.ndarray:
        return np.take(field, i, axis).mean((2, 3), dtype=np.float64)

    # An axis of one voxel has no differences: its column is that of the identity.
    if n == 1:
        return face(0) * 0 + np.eye(3)[4 - axis]
    if n == 2:
        return (face(1) - face(0)) / 2
    return (1.5 * (face(n - 1) - face(0)) + 0.5 * (face(1) - face(n - 2))) * ((n - 1) / (2 * n))


def _difference_adjoint(weight: np.ndarray, axis: int) -> np.ndarray:
    """The transpose of the differences along an axis of at least two voxels."""
    w = np.moveaxis(weight, axis, 0)
    n = len(w)
    step = 2.0 / (n - 1)
    out = np.zeros_like(w)
    if n > 2:
        middle = w[1:-1] / (2 * step)
        out[2:] += middle
        out[:-2] -= middle
    out[0] -= w[0] / step
    out[1] += w[0] / step
    out[-1] += w[-1] / step
    out[-2] -= w[-1] / step
    return np.moveaxis(out, 0, axis)


def _cofactors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transposed cofactors [B, 3, 3], determinant [B, 1, 1], and whether [B, 3, 3] is regular and finite [B, 1, 1].

    What counts as singular does not depend on the scale of the matrix, unless it is below 1e-6.
    """
    scale = np.sqrt((matrix**2).sum((1, 2), keepdims=True))
    a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
    det = (a * cofactors[..., 0]).sum(-1)[:, None, None]
    return cofactors, det, (np.abs(det) > 1e-5 * scale**3) & np.isfinite(det) & (scale > 1e-6)


def _inverse_or_identity(matrix: np.ndarray) -> np.ndarray:
    """Inverse of [B, 3, 3], or the identity where the matrix is singular or not finite."""
    cofactors, det, good = _cofactors(matrix)
    return np.where(good, cofactors / np.where(good, det, 1.0), np.eye(3))
