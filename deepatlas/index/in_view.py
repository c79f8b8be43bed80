"""Which voxels of the network's grid show the patient as the scanner saw him."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepatlas.model.exam_map import ExamMap
from deepatlas.space.grid import Grid
from deepatlas.space.inside import inside


def in_view(found: ExamMap, grid: Grid) -> NDArray[np.bool_]:
    """The voxels of an exam's body that hold nothing but values of the exam: bool ``[S, S, S]``.

    A patient who lies turned is resampled along his axes, so that beside the exam the network sees air, which has
    coordinates too, often those of the organ that the exam cuts. Voxels at that border mix both.

    Args:
        found: the coordinates of the exam, and what the network saw.
        grid: the exam's own grid.
    """
    shown = inside(grid, found.grid, 0.0)
    # The grid of the network ends within the exam where nothing was turned.
    pure: NDArray[np.bool_] = ndimage.binary_erosion(shown, np.ones((3, 3, 3), dtype=bool), border_value=1)
    return pure & found.body
