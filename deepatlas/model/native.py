"""Coordinates on a model grid, carried exactly to any other grid of the same exam.

The outermost centres of a model grid lie half a pooling window inside the exam, so that the outermost voxels of the
exam lie beyond them. Clamping would give a rim of voxels one and the same coordinate. The map is therefore continued
linearly by one model voxel, which is more than pooling ever removes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.grid import Grid

# The number of voxels that are processed at once.
CHUNK_VOXELS = 1 << 21


def extrapolate(coords: Tensor) -> Tensor:
    """Continue a map ``[B, 3, D, H, W]`` linearly by one voxel on every side: ``[B, 3, D+2, H+2, W+2]``."""
    for axis in (2, 3, 4):
        n = coords.shape[axis]
        first, last = coords.narrow(axis, 0, 1), coords.narrow(axis, n - 1, 1)
        if n > 1:
            first, last = 2 * first - coords.narrow(axis, 1, 1), 2 * last - coords.narrow(axis, n - 2, 1)
        coords = torch.cat([first, coords, last], dim=axis)
    return coords


def extrapolated_grid(grid: Grid) -> Grid:
    """The grid of the result of :func:`extrapolate`: one voxel more on every side."""
    return grid.cropped((-1, -1, -1), tuple(n + 2 for n in grid.shape))


def slabs(shape: tuple[int, int, int], voxels: int) -> Iterator[slice]:
    """Slices along z that cover ``shape`` with at most ``voxels`` voxels each, but at least one plane."""
    step = max(1, int(voxels) // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def coordinate_slabs(
    coords: Tensor, model_grid: Grid, native_grid: Grid, chunk: int = CHUNK_VOXELS
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(z slice, coords [1, 3, d, H, W])`` of the native grid.

    The map is interpolated linearly inside the model grid, continued linearly for one model voxel beyond it, and
    constant further out. Only a cropped model grid leaves voxels that far out, and
    :func:`~deepatlas.space.inside.inside` tells which.
    """
    yield from sampled_slabs(extrapolate(coords), extrapolated_grid(model_grid), native_grid, chunk)


def sampled_slabs(
    volume: Tensor, grid: Grid, native_grid: Grid, chunk: int = CHUNK_VOXELS
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(z slice, [1, C, d, H, W])``: ``volume [1, C, D, H, W]`` on ``grid``, sampled on the native grid.

    The interpolation is linear, and beyond its outermost centres the volume is constant.
    """
    _, height, width = native_grid.shape
    for z in slabs(native_grid.shape, chunk):
        part = native_grid.cropped((z.start, 0, 0), (z.stop - z.start, height, width))
        theta = torch.as_tensor(np.asarray(grid.theta_from(part)), dtype=volume.dtype, device=volume.device)
        yield z, ops.affine_resample(volume, theta[None], part.shape, padding="border")
