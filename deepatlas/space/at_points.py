"""Values of a volume at a list of points, however long it is."""

from __future__ import annotations

import torch
from torch import Tensor

import deepatlas_ops as ops

# The kernels take axes of at most 2^24 voxels, because float32 counts no further.
MOST = 1 << 24


def at_points(volume: Tensor, points: Tensor, padding: str = "border", most: int = MOST) -> Tensor:
    """Sample a volume linearly, with gradients, as :func:`deepatlas_ops.resample` does.

    Args:
        volume: ``[1, C, D, H, W]``.
        points: ``[1, 3, N]``, at least one, normalised to the corner-aligned grid of the volume.
        padding: what lies outside of the volume, as for ``resample``.
        most: the number of points that are sampled at once.

    Returns:
        ``[1, C, N]``.
    """
    parts = [
        ops.resample(volume, part[..., None, None], padding=padding)[..., 0, 0]
        for part in points.split(most, dim=2)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
