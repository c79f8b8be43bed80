"""What the network of a region sees of an exam: the region's box, cut from the full resolution (section 5.2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepatlas.model.field import CoordinateField
from deepatlas.model.project_box import CarriedBox, carry_box
from deepatlas.space.box import Box
from deepatlas.space.constants import AIR, FINE_SIZE
from deepatlas.space.preprocess import pool_volume
from deepatlas.space.resample_to import resample_to
from deepatlas.space.volume import Volume


@dataclass(frozen=True)
class RegionView:
    """A region of an exam, along the axes of the region.

    Attributes:
        fine: float32, 128³ voxels that fill the region's box in the exam, without its shear.
        hu: the means of ``fine``, at the size of the network's input.
        carried: where the box lies, how much of it the scan shows, and how well an affine map describes it.
    """

    fine: Volume
    hu: Volume
    carried: CarriedBox


def view_of(
    volume: Volume,
    field: CoordinateField,
    box: Box,
    size: int,
    *,
    body: NDArray[np.bool_] | None = None,
    coverage: float = 0.0,
    intensity: str = "hu",
) -> RegionView | None:
    """Cut the box of a region out of an exam, turned as the box lies there.

    Args:
        volume: the exam at its full resolution, with values as
            :func:`~deepatlas.space.check_input.check_input` returns them.
        field: the coordinates of the exam.
        box: the box in the coordinates of the atlas.
        size: voxels along each side of the network's input, a divisor of 128.
        body: ``[S, S, S]``, the foreground of the exam on ``field.grid``.
        coverage: the least share of the box that the scan must show.
        intensity: what the values are (``data.intensity``).

    Returns:
        The view; None where the scan shows less of the box than ``coverage``, or no place of the exam has coordinates
        in it. What lies beyond the scan is air, or the exam's lowest value.
    """
    carried = carry_box(field, box, volume.grid, body)
    if carried is None or carried.coverage < coverage or carried.coverage == 0:
        return None
    outside = AIR if intensity == "hu" else float(np.asarray(volume.array).min())
    grid = carried.upright.grid(FINE_SIZE)
    # Plain linear interpolation at 128³ and the mean of blocks, as for the whole exam (section 5.5.2).
    fine = resample_to(volume, grid, outside=outside, samples=1)
    return RegionView(fine, pool_volume(fine, FINE_SIZE // size), carried)
