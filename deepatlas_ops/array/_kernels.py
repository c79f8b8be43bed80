"""resample, warp, resize, log_jacobian, folds and ncc for arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import options
from . import _check
from ._library import kernels


def resample(
    volume: np.ndarray, coords: np.ndarray, *, mode: str = "linear", padding: str = "border"
) -> np.ndarray:
    """Read a volume at absolute coordinates: ``out[b, :, v] = volume[b](coords[b, :, v])``.

    Args:
        volume: [B, C, D, H, W], float64 or float32.
        coords: [B, 3, d, h, w], channels x, y, z, in the dtype of ``volume``. Coordinates are normalised and
            corner-aligned: along each axis of ``volume``, -1 is the centre of the first voxel and +1 the centre of the
            last. On an axis of size 1 every coordinate means its only voxel. A voxel with a NaN coordinate gives NaN in
            all channels.
        mode: ``"linear"`` (trilinear) or ``"nearest"`` (halfway between two voxels, the one with the even index).
        padding: the values beyond the centres of the outermost voxels. ``"border"`` repeats the nearest value,
            ``"zeros"`` fades to 0 within one voxel, and ``"reflection"`` mirrors at these centres.

    Returns:
        [B, C, d, h, w], in the dtype of ``volume``.

    Raises:
        ValueError: a wrong type, shape or dtype, or an unknown mode or padding.
        MemoryError: there is not enough memory for the result.
    """
    return _sample("resample", "coords", volume, coords, mode, padding)


def warp(
    volume: np.ndarray, displacement: np.ndarray, *, mode: str = "linear", padding: str = "border"
) -> np.ndarray:
    """Read a volume at identity + displacement: ``out[b, :, v] = volume[b](v + displacement[b, :, v])``.

    Args:
        volume: [B, C, D, H, W], float64 or float32.
        displacement: [B, 3, d, h, w], channels x, y, z, in normalised coordinates, in the dtype of ``volume``. It is
            added to the identity of its own grid, so the shape of the output may differ from that of ``volume``.
        mode, padding: as in :func:`resample`.

    Returns:
        [B, C, d, h, w], in the dtype of ``volume``.

    Raises:
        ValueError, MemoryError: as :func:`resample`.
    """
    return _sample("warp", "displacement", volume, displacement, mode, padding)


def resize(volume: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Corner-aligned linear resizing, up or down: the first and the last voxel of each axis keep their places.

    Args:
        volume: [B, C, D, H, W], float64 or float32.
        size: (D, H, W) of the output, each at least 1. An axis of size 1 lies in the middle of the input axis.

    Returns:
        [B, C, *size], in the dtype of ``volume``. There is no low-pass filter.

    Raises:
        ValueError: a volume of a wrong type, shape or dtype, or a size that is not three positive integers.
        MemoryError: there is not enough memory for the result.
    """
    v = _check.volume("resize", "volume", volume)
    sizes = _check.size("resize", size)
    with _check.room("resize", (*v.shape[:2], *sizes), v.dtype):
        return kernels().resize(v, *sizes)


def log_jacobian(field: np.ndarray, *, normalize_columns: bool = False, eps: float = 1e-3) -> np.ndarray:
    """Logarithm of the Jacobian determinant of a coordinate field, by normalised coordinates.

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64 or
            float32.
        normalize_columns: divide each column of the Jacobian by its length first.
        eps: the determinant below which the logarithm is replaced by a finite, increasing function, as in
            :func:`deepatlas_ops.log_jacobian`.

    Returns:
        [B, 1, D, H, W], in the dtype of ``field``. The identity gives 0. Differences are central inside and one-sided
        at the borders; an axis of size 1 has the column of the identity.

    Raises:
        ValueError: a field of a wrong type, shape or dtype, or an eps not above 0.
        MemoryError: there is not enough memory for the result.
    """
    f, eps = _check.volume("log_jacobian", "field", field, channels=3), options.plain(eps)
    options.positive("log_jacobian", "eps", eps)
    with _check.room("log_jacobian", (f.shape[0], 1, *f.shape[2:]), f.dtype):
        return kernels().log_jacobian(f, bool(normalize_columns), float(eps))


def folds(field: np.ndarray, mask: np.ndarray | None = None, *, differences: str = "central") -> np.ndarray:
    """The fraction of a coordinate field's voxels where it folds: where its Jacobian determinant is at most 0.

    Args:
        field: [B, 3, D, H, W] absolute normalised coordinates (not a displacement), channels x, y, z; float64 or
            float32.
        mask: [B, 1, D, H, W] non-negative weights: bool, an integer type or the dtype of ``field``. None weights all
            voxels equally. A mask that is 0 everywhere gives 0.
        differences: ``"central"``, or ``"digital"``, which counts a voxel if any of the eight determinants of forward
            and backward differences is at most 0; see :func:`deepatlas_ops.folds`.

    Returns:
        [B], in the dtype of ``field``. A determinant that is NaN does not count as a fold.

    Raises:
        ValueError: a wrong type, shape or dtype, or other differences.
        MemoryError: there is not enough memory for the determinants.
    """
    f = _check.volume("folds", "field", field, channels=3)
    weights = _check.mask("folds", mask, "field", f)
    options.choice("folds", "differences", differences, ("central", "digital"))
    with _check.room("folds", (f.shape[0], 1, *f.shape[2:]), f.dtype):
        folded = kernels().determinant(f, differences == "digital") <= 0
    axes = (1, 2, 3, 4)
    if weights is None:
        return folded.mean(axes, dtype=np.float64).astype(f.dtype)
    total = weights.sum(axes, dtype=np.float64)
    share = np.where(folded, weights, 0).sum(axes, dtype=np.float64) / np.where(total == 0, 1, total)
    return share.astype(f.dtype)


def ncc(
    a: np.ndarray,
    b: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    window: int | None = None,
    eps: float = 1e-5,
) -> np.ndarray:
    """Normalised cross-correlation of two feature maps, for each channel, computed in float64.

    Args:
        a, b: [B, C, D, H, W], of one shape and dtype, float64 or float32.
        mask: [B, 1, D, H, W] non-negative weights for all channels: bool, an integer type or the dtype of ``a``. None
            weights all voxels equally. A mask that is 0 everywhere gives 0. Values where the weight is 0 are never
            used, even if they are NaN.
        window: None correlates over the whole volume. An odd number k correlates within the k x k x k window around
            each voxel; the result is the weighted mean of these signed correlations.
        eps: up to which spread a map counts as flat, as in :func:`deepatlas_ops.ncc`.

    Returns:
        [B, C], each in [-1, 1], in the dtype of ``a``; 0 where a map is flat.

    Raises:
        ValueError: a wrong type, shape or dtype, a window that is even or not positive, or an eps not above 0.
        MemoryError: there is not enough memory for the computation.
    """
    x, y = _check.volume("ncc", "a", a), _check.volume("ncc", "b", b)
    _check.alike("ncc", "b", y, "a", x)
    if y.shape != x.shape:
        _check.fail("ncc", "b", f"the shape of a, {options.shape(x.shape)}", options.shape(y.shape))
    weights = _check.mask("ncc", mask, "a", x)
    window, eps = options.plain(window), options.plain(eps)
    options.window("ncc", window)
    options.positive("ncc", "eps", eps)
    # A window that reaches beyond the volume in all directions is the widest.
    width = min(window or 0, 2 * _check.LONGEST_AXIS + 1)
    with _check.room("ncc", x.shape[:2], x.dtype):
        return kernels().ncc(x, y, weights, width, float(eps))


def _sample(
    op: str, argument: str, volume: np.ndarray, field: np.ndarray, mode: str, padding: str
) -> np.ndarray:
    options.choice(op, "mode", mode, options.MODES)
    options.choice(op, "padding", padding, options.PADDINGS)
    v = _check.volume(op, "volume", volume)
    f = _check.volume(op, argument, field, channels=3)
    _check.alike(op, argument, f, "volume", v)
    with _check.room(op, (*v.shape[:2], *f.shape[2:]), v.dtype):
        return kernels().sample(
            argument == "displacement", v, f, options.MODES[mode], options.PADDINGS[padding]
        )
