"""Exams whose voxel axes do not follow the axes of the patient, resampled so that they do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

import deepatlas_ops as ops
from deepatlas.space.constants import AIR, FINE_SIZE
from deepatlas.space.grid import Grid
from deepatlas.space.volume import Volume

# Networks learn from upright exams and bear what random affine maps of the training turn them by. A degree is far less.
TOLERANCE_DEGREES = 1.0
# No more voxels along an axis than this many for each voxel of the network's finest input.
_OVERSAMPLING = 3


def obliqueness(grid: Grid) -> float:
    """The largest angle in degrees between a voxel axis and the patient axis that it is closest to."""
    canonical, _, _ = grid.canonical()
    cosines = np.diag(canonical.affine[:3, :3]) / np.array(canonical.spacing)
    return math.degrees(math.acos(float(np.clip(cosines.min(), -1, 1))))


def upright(volume: Volume) -> Volume:
    """A CT with voxel axes along the patient's (RAS+): to the right, to the front and to the head.

    Where the axes are off by at most ``TOLERANCE_DEGREES``, voxels are reordered and nothing is resampled. Otherwise
    the exam is resampled linearly onto a grid along the patient's axes that holds all of it, with voxels as small as
    its smallest ones, but at most 384 along an axis. What lies outside the exam is air.

    Args:
        volume: Hounsfield units on any grid.

    Returns:
        The exam with its exact grid: of the same dtype if it was reordered, float32 if it was resampled.
    """
    if obliqueness(volume.grid) <= TOLERANCE_DEGREES:
        return volume.canonical()
    volume = volume.canonical()
    # The outer faces of the voxels, not the centres.
    faces = np.array(list(np.ndindex(2, 2, 2))) * np.array(volume.grid.shape[::-1]) - 0.5
    corners = volume.grid.voxel_to_world(faces)
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    spacing = np.maximum(min(volume.grid.spacing), extent / (_OVERSAMPLING * FINE_SIZE))
    shape = np.maximum(1, np.ceil(extent / spacing - 1e-6).astype(int))
    target = Grid.from_spacing(tuple(shape[::-1].tolist()), spacing, low + spacing / 2)
    tensor = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32)).clamp(min=AIR) - AIR
    theta = torch.from_numpy(volume.grid.theta_from(target)).float()[None]
    turned = ops.affine_resample(tensor[None, None], theta, target.shape, padding="zeros")[0, 0] + AIR
    return replace(volume, array=turned.numpy(), grid=target)
