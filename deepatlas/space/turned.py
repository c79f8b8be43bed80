"""An exam whose anatomy lies askew, turned to the axes that the network knows before it is resampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepatlas.space.constants import AIR, FINE_SIZE
from deepatlas.space.grid import Grid
from deepatlas.space.preprocess import foreground_box, to_model_grid
from deepatlas.space.resample_to import resample_to
from deepatlas.space.upright import upright
from deepatlas.space.volume import Volume


def turned_to_model_grid(
    volume: Volume, rotation: NDArray[np.float64], size: int, crop: str | None, intensity: str = "hu"
) -> Volume:
    """:func:`~deepatlas.space.preprocess.to_model_grid` along axes that are not those of the scanner.

    The exam is cropped to the patient as it lies, which leaves out what stands beside the patient and would be turned
    into the way, such as the couch; then it is turned, and cropped and resampled as any other.

    Args:
        volume: as for :func:`~deepatlas.space.preprocess.to_model_grid`.
        rotation: ``[3, 3]``, whose columns are the patient's own axes (right, front, head) in RAS+ millimetres.
        size: voxels along each side.
        crop: as for :func:`~deepatlas.space.preprocess.to_model_grid`.
        intensity: what the values are (``data.intensity``).

    Returns:
        A float32 volume, whose grid has these axes.
    """
    seen = upright(volume)
    if crop:
        seen = seen.cropped(*foreground_box(seen, intensity))
    corners = seen.grid.corners() @ rotation
    low, high = corners.min(axis=0), corners.max(axis=0)
    # The network's input is no finer than this, so that a large exam need not be turned at its full resolution.
    spacing = np.maximum(seen.grid.spacing, (high - low) / (2 * FINE_SIZE))
    counts = np.ceil((high - low) / spacing).astype(int) + 1
    shape = tuple(counts[::-1].tolist())
    straight, oblique = np.diag([*spacing, 1.0]), np.eye(4)
    straight[:3, 3] = low
    turn = np.eye(4)
    turn[:3, :3] = rotation
    oblique = turn @ straight
    outside = AIR if intensity == "hu" else float(np.asarray(seen.array).min())
    found = resample_to(seen, Grid(shape, oblique), outside=outside)
    # Under the names of the scanner's axes, which the crops look along.
    result = to_model_grid(replace(found, grid=Grid(shape, straight)), size, crop, intensity)
    return replace(result, grid=Grid(result.grid.shape, turn @ result.grid.affine))
