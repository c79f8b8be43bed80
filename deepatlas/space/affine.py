"""Affine maps of normalised coordinates: coordinates under a map, and random maps for augmentation (paper 5.5.2).

A ``theta`` [B, 3, 4] maps the normalised coordinates (x, y, z) of a moved sample to those of its original:
``moved(v) = original(theta v)``, which is what ``ops.affine_resample`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deepatlas.config import DataConfig


def affine_coords(theta: Tensor, size: int | Sequence[int]) -> Tensor:
    """Normalised coordinates of the voxels of an augmented sample in its original: the map ``original_from_augmented``.

    Args:
        theta: affine maps ``[B, 3, 4]``.
        size: voxels along each axis of the sample, one number or (z, y, x). An axis of size 1 has coordinate 0.

    Returns coordinates ``[B, 3, D, H, W]``, channels x, y, z.
    """
    shape = (size,) * 3 if isinstance(size, int) else tuple(size)
    axes = [
        torch.linspace(-1, 1, n, device=theta.device, dtype=theta.dtype) if n > 1 else theta.new_zeros(1)
        for n in shape
    ]
    z, y, x = axes
    linear, shift = theta[:, :, :3, None, None, None], theta[:, :, 3, None, None, None]
    return linear[:, :, 0] * x + linear[:, :, 1] * y[:, None] + linear[:, :, 2] * z[:, None, None] + shift


def random_affine(
    batch: int,
    generator: torch.Generator | None = None,
    *,
    scale: tuple[float, float] = DataConfig.scale,
    rotation: float | Sequence[float] = DataConfig.rotation,
    translation: float | Sequence[float] = DataConfig.translation,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw ``batch`` independent affine maps.

    Each axis is scaled by its own factor from ``scale``; a factor above 1 enlarges the field of view. The cube is
    then rotated by an angle of up to ``±rotation`` radians about each of x, y and z, and finally moved by up to
    ``±translation`` in normalised units along each axis. ``rotation`` and ``translation`` are one number, or one for
    each axis (x, y, z). As in the paper, the normalised cube is rotated, regardless of the size of its voxels.

    Returns theta ``[B, 3, 4]``. The numbers are drawn on the device of the generator, so that a CPU generator gives
    the same maps on every device. Raises ValueError for ranges that are negative or not finite.
    """
    low, high = scale
    if not 0 < low <= high:
        raise ValueError(f"random_affine: scale must be (low, high) with 0 < low <= high, got {scale}")
    source = generator.device if generator is not None else torch.device("cpu")
    draws = torch.rand((batch, 3, 3), generator=generator, device=source, dtype=torch.float64)
    factors = low + (high - low) * draws[:, 0]
    angles = (2 * draws[:, 1] - 1) * _per_axis(rotation, "rotation").to(source)
    shift = (2 * draws[:, 2] - 1) * _per_axis(translation, "translation").to(source)
    linear = rotation_matrix(angles) * factors[:, None, :]
    return torch.cat([linear, shift[..., None]], dim=2).to(device=device, dtype=dtype)


def rotation_matrix(angles: Tensor) -> Tensor:
    """Rotations ``[B, 3, 3]`` about x, then y, then z by ``angles`` [B, 3] in radians."""
    c, s = torch.cos(angles), torch.sin(angles)
    cx, cy, cz = c.unbind(1)
    sx, sy, sz = s.unbind(1)
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _per_axis(value: float | Sequence[float], name: str) -> Tensor:
    values = torch.as_tensor(value, dtype=torch.float64).expand(3) if isinstance(value, int | float) else None
    if values is None:
        values = torch.as_tensor(list(value), dtype=torch.float64)  # type: ignore[arg-type]
    if values.shape != (3,) or not all(math.isfinite(v) and v >= 0 for v in values.tolist()):
        raise ValueError(
            f"random_affine: {name} must be a number of at least 0, or three (x, y, z), got {value!r}"
        )
    return values
