"""Which voxels of one grid lie in the field of view of another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepatlas.space.grid import Grid


def inside(view: Grid, grid: Grid, margin: float = 0.5) -> NDArray[np.bool_]:
    """Bool ``[D, H, W]``: which voxels of ``grid`` lie in the field of view of ``view``.

    The field of view ends ``margin`` of its voxels beyond the outermost centres; 0.5 is the outer face of the voxels.
    """
    to_model = np.linalg.inv(np.asarray(view.affine)) @ np.asarray(grid.affine)
    depth, height, width = grid.shape
    x, y, z = np.arange(width), np.arange(height)[:, None], np.arange(depth)[:, None, None]
    result = np.ones(grid.shape, dtype=bool)
    for row, n in zip(to_model[:3], view.shape[::-1], strict=True):
        # The map is affine in each index, so that broadcasting replaces a mesh of all voxels. Of grids with the same
        # axes an index depends on one of the others alone.
        index = np.zeros((1, 1, 1))
        for step, line in zip(row[:3], (x, y, z), strict=True):
            if step:
                index = index + step * line
        index = index + row[3]
        result &= (index >= -margin) & (index <= n - 1 + margin)
    return result
