"""Coordinates of a model grid carried to any other grid of the same exam, exactly.

A model grid ends half a pooling window inside the exam, so the outermost voxels of the exam lie beyond its
outermost centres. Clamping there would give a rim of voxels one and the same coordinate; the map is
continued linearly instead (by one model voxel, more than pooling ever takes).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.errors import DeepAtlasError
from deepatlas.space.grid import Grid

CHUNK_VOXELS = 1 << 21


def _check(coords: Tensor, model_grid: Grid) -> None:
    if coords.ndim != 5 or coords.shape[:2] != (1, 3) or tuple(coords.shape[2:]) != tuple(model_grid.shape):
        raise DeepAtlasError(
            f"native_coordinates: coords must be [1, 3, {', '.join(map(str, model_grid.shape))}] to match "
            f"the model grid, got {list(coords.shape)}"
        )


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
    """The grid of :func:`extrapolate`'s result: one voxel more on every side."""
    return grid.cropped((-1, -1, -1), tuple(n + 2 for n in grid.shape))


def slabs(shape: tuple[int, int, int], voxels: int) -> Iterator[slice]:
    """Slices along z of at most ``voxels`` voxels (at least one plane) that cover ``shape``."""
    step = max(1, int(voxels) // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def coordinate_slabs(
    coords: Tensor, model_grid: Grid, native_grid: Grid, chunk: int = CHUNK_VOXELS
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(z slice, coords [1, 3, d, H, W])`` of the native grid; see native_coordinates."""
    _check(coords, model_grid)
    padded, grid = extrapolate(coords), extrapolated_grid(model_grid)
    _, height, width = native_grid.shape
    for z in slabs(native_grid.shape, chunk):
        part = native_grid.cropped((z.start, 0, 0), (z.stop - z.start, height, width))
        theta = torch.as_tensor(np.asarray(grid.theta_from(part)), dtype=coords.dtype, device=coords.device)
        yield z, ops.affine_resample(padded, theta[None], part.shape, padding="border")


def native_coordinates(
    coords: Tensor, model_grid: Grid, native_grid: Grid, chunk: int = CHUNK_VOXELS
) -> Tensor:
    """Coordinates ``[1, 3, s, s, s]`` on ``model_grid`` sampled on ``native_grid``: ``[3, D, H, W]``.

    Linear inside the model grid, linearly continued for one model voxel beyond it, constant further out
    (only a cropped model grid leaves voxels there; :func:`inside` tells which). Any orientation, spacing or
    obliqueness. ``chunk`` bounds the voxels worked on at once. Raises DeepAtlasError where the shapes do
    not match.
    """
    out = coords.new_empty((3, *native_grid.shape))
    for z, part in coordinate_slabs(coords, model_grid, native_grid, chunk):
        out[:, z] = part[0]
    return out


def inside(model_grid: Grid, native_grid: Grid, margin: float = 0.5) -> np.ndarray:
    """Bool ``[D, H, W]``: native voxels within the model grid's field of view.

    The field of view ends ``margin`` model voxels beyond the outermost centres (0.5: the outer face of the
    voxels).
    """
    to_model = np.linalg.inv(np.asarray(model_grid.affine)) @ np.asarray(native_grid.affine)
    depth, height, width = native_grid.shape
    x, y, z = np.arange(width), np.arange(height)[:, None], np.arange(depth)[:, None, None]
    result = np.ones(native_grid.shape, dtype=bool)
    for row, n in zip(to_model[:3], model_grid.shape[::-1], strict=True):
        index = (
            row[0] * x + row[1] * y + row[2] * z + row[3]
        )  # affine in each index: broadcasts, never meshed
        result &= (index >= -margin) & (index <= n - 1 + margin)
    return result
