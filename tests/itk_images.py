"""Volumes as images of SimpleITK and the places of their voxels, made without the code under test."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from deepatlas.space.grid import Grid

LPS = np.array([-1.0, -1.0, 1.0])


def everywhere(grid: Grid) -> np.ndarray:
    """RAS mm ``[D, H, W, 3]`` of the voxels, by NumPy alone."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")[::-1], axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def as_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS * grid.affine[:3, 3]).tolist())
    image.SetDirection((LPS[:, None] * (grid.affine[:3, :3] / spacing)).ravel().tolist())
    return image
