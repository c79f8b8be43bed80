"""Whether an exam shows half a patient: a body that ends in a plane on one side."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from deepatlas.space.constants import AIR
from deepatlas.space.grid import Grid
from deepatlas.space.morphology import filled_slices, opened
from deepatlas.space.volume import Volume

# The body is looked at on about this many voxels along each axis.
_SAMPLES = 64
# Soft tissue and fat; lungs are filled in each axial slice.
_BODY = -400.0
# The share of the body's largest section that begins or ends in one plane. In 213 real exams it was at most 0.53 on
# either side, but for one that was cut on three sides; in their halves it was 0.67 to 0.96, and on the opposite side at
# least 0.3 less.
_PLANE, _APART = 0.6, 0.3
# For each array axis of a RAS image: the side where it begins and the one where it ends.
_SIDES = {2: ("left", "right"), 1: ("back", "front")}


def halved(volume: Volume) -> list[str]:
    """One line for each side on which the patient ends in a plane, but not on the opposite one.

    A field of view that is narrower than the patient on both sides gives no line, and neither do the first and the last
    axial slice, where every exam ends.

    Args:
        volume: Hounsfield units on any grid.
    """
    # An image is cut along its own axes, so it is not turned to those of the patient.
    body = _sampled(volume).canonical().array > _BODY
    regions, count = ndimage.label(opened(body))
    if not count:
        return []
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    body = regions == sizes.argmax()
    body = filled_slices(body)
    lines = []
    for axis, sides in _SIDES.items():
        along = np.pad(np.moveaxis(body, axis, 0), ((1, 1), (0, 0), (0, 0)))
        largest = along.sum(axis=(1, 2)).max()
        begins = (along[1:] & ~along[:-1]).sum(axis=(1, 2)).max() / largest
        ends = (along[:-1] & ~along[1:]).sum(axis=(1, 2)).max() / largest
        for side, share, other in zip(sides, (begins, ends), (ends, begins), strict=True):
            if share >= _PLANE and share - other >= _APART:
                plane = f"the patient ends in a plane on the {side} ({share:.0%} of the largest section)"
                lines.append(f"{plane}: half a patient, or a field of view that cuts it")
    return lines


def _sampled(volume: Volume) -> Volume:
    """Every n-th voxel along each axis, with its grid."""
    steps = [max(1, n // _SAMPLES) for n in volume.grid.shape]
    array = np.maximum(volume.array[tuple(slice(None, None, n) for n in steps)], AIR)
    affine = volume.grid.affine.copy()
    affine[:3, :3] *= steps[::-1]
    return Volume(array, Grid(array.shape, affine), volume.name)
