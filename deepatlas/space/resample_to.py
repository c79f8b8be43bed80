"""An oriented view of an exam, resampled from its full resolution (section 5.2.4 and Fig. 8)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import deepatlas_ops as ops
from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid, Shape
from deepatlas.space.inside import inside
from deepatlas.space.labels import Labels
from deepatlas.space.preprocess import labels_to_grid, pool_drawn
from deepatlas.space.volume import Volume

# The most samples along each axis of a voxel that is larger than those of the exam.
SAMPLES = 4
# The number of samples that are taken at once.
_CHUNK = 1 << 22
# A voxel that is larger than one of the exam by less than this share takes one sample.
_SLACK = 1e-3


def resample_to(
    volume: Volume, grid: Grid, *, outside: float = AIR, samples: int = SAMPLES, chunk: int = _CHUNK
) -> Volume:
    """An image on any grid, turned and of any resolution, from the voxels of its source.

    Voxels are interpolated linearly. A voxel that is larger than those of the source is the mean of several samples,
    which are at most one voxel of the source apart along each axis, as the network's input is pooled (section 5.5.2).

    Args:
        volume: the exam at its full resolution.
        grid: the grid of the result.
        outside: what lies beyond the outer faces of the exam's voxels. Lower values of the exam are raised to it, as
            those that scanners fill the corners with.
        samples: at most so many samples along each axis of a voxel; 1 for plain linear interpolation.
        chunk: the number of samples that are taken at once.

    Returns:
        float32 on ``grid``, with the name and the modality of ``volume``.
    """
    kernel = shrinkage(volume.grid, grid, samples)
    array = np.full(grid.shape, outside, dtype=np.float32)
    source = _reached(volume, grid)
    if source is not None:
        values = torch.from_numpy(np.array(source.array, dtype=np.float32)).clamp_(min=outside)[None, None]
        step = max(1, chunk // (grid.shape[1] * grid.shape[2] * math.prod(kernel)))
        for start in range(0, grid.shape[0], step):
            depth = min(step, grid.shape[0] - start)
            part = grid.cropped((start, 0, 0), (depth, *grid.shape[1:])).divided(kernel)
            fine = _sampled(values, source.grid, volume.grid, part, outside)
            array[start : start + depth] = torch.nn.functional.avg_pool3d(fine, kernel)[0, 0].numpy()
    return replace(volume, array=array, grid=grid)


def labels_resampled_to(labels: Volume, grid: Grid, *, samples: int = SAMPLES) -> Labels:
    """Labels on the grid of :func:`resample_to`: the most frequent one of the samples of a voxel, 0 outside.

    Overlaps are kept, and the type of the ids.
    """
    kernel = max(shrinkage(labels.grid, grid, samples))
    return pool_drawn(labels_to_grid(labels, grid.divided(kernel)), kernel)


def shrinkage(source: Grid, grid: Grid, most: int = SAMPLES) -> Shape:
    """Into how many samples (z, y, x) a voxel of ``grid`` is divided, so that they are a voxel of ``source`` apart."""
    step = np.abs(np.linalg.inv(source.affine)[:3, :3] @ grid.affine[:3, :3]).max(axis=0)
    x, y, z = np.clip(np.ceil(step - _SLACK), 1, most).astype(int).tolist()
    return z, y, x


def _reached(volume: Volume, grid: Grid) -> Volume | None:
    """The part of an exam that the voxels of a grid reach into, or None."""
    faces = np.array(list(np.ndindex(2, 2, 2))) * np.array(grid.shape[::-1]) - 0.5
    index = volume.grid.world_to_voxel(grid.voxel_to_world(faces))[:, ::-1]
    low = np.maximum(np.floor(index.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 2, volume.grid.shape)
    if (low >= high).any():
        return None
    return volume.cropped(low.tolist(), (high - low).tolist())


def _sampled(values: Tensor, source: Grid, whole: Grid, part: Grid, outside: float) -> Tensor:
    """``[1, 1, d, H, W]``: an exam at the voxels of ``part``.

    ``values`` ``[1, 1, D, H, W]`` are its voxels on ``source``, which is a part of its grid ``whole``.
    """
    theta = torch.from_numpy(source.theta_from(part)).float()[None]
    fine = ops.affine_resample(values, theta, part.shape, padding="border")
    if not whole.covers(part.corners()).all():
        fine[0, 0][~torch.from_numpy(inside(whole, part))] = outside
    return fine
