"""What the page draws of an exam: int16 voxels along the patient's axes, few enough to be sent and held."""

from __future__ import annotations

import numpy as np
import torch

from deepatlas.space.grid import Grid
from deepatlas.space.upright import TOLERANCE_DEGREES, obliqueness, upright
from deepatlas.space.volume import Volume
from deepatlas.view.pack import MOST


def page_grid(grid: Grid) -> tuple[Grid, tuple[int, int, int]]:
    """The grid of an upright exam that is sent to the page, and how many voxels (z, y, x) become one there."""
    z, y, x = (-(-n // MOST) for n in grid.shape)
    return grid.pooled((z, y, x)), (z, y, x)


def picture(volume: Volume) -> tuple[Volume, list[str]]:
    """An exam for the page.

    An exam on an oblique grid is turned to the axes of the patient. One with more than 256 voxels along an axis is
    averaged over blocks of voxels.

    Args:
        volume: Hounsfield units, or an image on the scale of the network, on any grid.

    Returns:
        int16 voxels on a RAS+ grid, and a line for what is not shown as it is in the file.
    """
    lines = []
    if (angle := obliqueness(volume.grid)) > TOLERANCE_DEGREES:
        lines.append(f"on an oblique grid ({angle:.0f} degrees), shown along the axes of the patient")
    shown = upright(volume)
    grid, blocks = page_grid(shown.grid)
    array = np.ascontiguousarray(shown.array)
    if max(blocks) > 1:
        was, now = (" × ".join(map(str, s[::-1])) for s in (shown.grid.shape, grid.shape))
        lines.append(f"large ({was} voxels), shown with {now}; results are made on the full grid")
        tensor = torch.from_numpy(array.astype(np.float32, copy=False))[None, None]
        array = torch.nn.functional.avg_pool3d(tensor, blocks)[0, 0].numpy()
    info = np.iinfo(np.int16)
    whole = np.rint(array).clip(info.min, info.max).astype(np.int16)
    return Volume(whole, grid, volume.name, modality=volume.modality), lines
