"""How good a mask is where the drawing can tell: in the axial slices in which both have the structure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deepatlas.evaluate.metrics.dice import dice
from deepatlas.evaluate.metrics.surface import surface_distances
from deepatlas.space.grid import Grid


def in_common_slices(drawn: NDArray[np.bool_], found: NDArray[np.bool_], grid: Grid) -> tuple[float, float]:
    """The Dice of two masks ``[D, H, W]``, and the mean distance in mm from the drawn surface to the other.

    How far along the body a cord or an oesophagus is drawn is a choice of whoever drew it, and nothing that an image
    could foretell. So only the axial slices count in which both masks have a voxel. Without such a slice the Dice is 0
    and the distance nan.
    """
    _, axes, _ = grid.canonical()
    # The axis of the array that runs along the patient.
    along = axes[0]
    across = tuple(a for a in range(3) if a != along)
    common = np.flatnonzero(drawn.any(axis=across) & found.any(axis=across))
    if not len(common):
        return 0.0, math.nan
    first, second = drawn.take(common, along), found.take(common, along)
    distances = surface_distances(first, second, grid.spacing)
    return dice(first, second), float(distances.from_reference.mean())
